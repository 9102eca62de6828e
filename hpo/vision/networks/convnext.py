"""torchvision's ConvNeXts (Liu et al., CVPR 2022, arXiv:2201.03545)."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork, in_stages

if TYPE_CHECKING:
    from torch import nn


class ConvNeXts(TorchvisionNetwork):
    """ConvNeXts, whose units are the stem, then each block; downsampling belongs to the block after it."""

    published = {
        "convnext_tiny": Published(19, 29, 2600, "convnext_tiny-983f1562.pth"),
        "convnext_small": Published(37, 50, 4200, "convnext_small-0c510722.pth"),
        "convnext_base": Published(37, 89, 5500, "convnext_base-6075fbad.pth"),
        "convnext_large": Published(37, 198, 8300, "convnext_large-ea097f82.pth"),
    }
    input_sizes = dict.fromkeys(published, range(32, 2**16))
    keys_without_decay = ("layer_scale",)
    landmark = "features.0.0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, then each block."""
        return in_stages(module.features)

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """Global average pooling, LayerNorm and the linear layer."""
        from torch import nn

        return nn.Sequential(module.avgpool, *module.classifier)
