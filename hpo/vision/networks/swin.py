"""torchvision's Swin Transformers (Liu et al., ICCV 2021, arXiv:2103.14030) and V2 (CVPR 2022, arXiv:2111.09883)."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork, in_stages

if TYPE_CHECKING:
    from torch import nn


class Swins(TorchvisionNetwork):
    """Swin Transformers V1 and V2: units are the stem, then each block; downsampling belongs to the block after it."""

    published = {
        "swin_t": Published(13, 28, 3400, "swin_t-704ceda3.pth"),
        "swin_s": Published(25, 50, 6100, "swin_s-5e29d889.pth"),
        "swin_b": Published(25, 88, 8200, "swin_b-68c6b09e.pth"),
        "swin_v2_t": Published(13, 28, 3900, "swin_v2_t-b137f0e2.pth"),
        "swin_v2_s": Published(25, 50, 6200, "swin_v2_s-637d8ceb.pth"),
        "swin_v2_b": Published(25, 88, 8100, "swin_v2_b-781e5279.pth"),
    }
    keys_without_decay = ("relative_position_bias_table", "logit_scale", "cpb_mlp")
    landmark = "features.0.0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The patch embedding, then each block."""
        return in_stages(module.features)

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """LayerNorm, global average pooling and the linear layer."""
        from torch import nn

        return nn.Sequential(module.norm, module.permute, module.avgpool, module.flatten, module.head)
