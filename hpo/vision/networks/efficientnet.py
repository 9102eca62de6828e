"""torchvision's EfficientNets (Tan and Le, ICML 2019, arXiv:1905.11946) and V2 (ICML 2021, arXiv:2104.00298)."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork

if TYPE_CHECKING:
    from torch import nn


class EfficientNets(TorchvisionNetwork):
    """EfficientNets V1 and V2, whose units are the stem, each block, and the last convolution."""

    published = {
        "efficientnet_b0": Published(18, 5, 2100, "efficientnet_b0_rwightman-7f5810bc.pth"),
        "efficientnet_b1": Published(25, 8, 2900, "efficientnet_b1-c27df63c.pth"),
        "efficientnet_b2": Published(25, 9, 3100, "efficientnet_b2_rwightman-c35c1473.pth"),
        "efficientnet_b3": Published(28, 12, 4100, "efficientnet_b3_rwightman-b3899882.pth"),
        "efficientnet_b4": Published(34, 19, 5400, "efficientnet_b4_rwightman-23ab8bcd.pth"),
        "efficientnet_b5": Published(41, 30, 7400, "efficientnet_b5_lukemelas-1a07897c.pth"),
        "efficientnet_b6": Published(47, 43, 9500, "efficientnet_b6_lukemelas-24a108a5.pth"),
        "efficientnet_b7": Published(57, 66, 13000, "efficientnet_b7_lukemelas-c5b4e57e.pth"),
        "efficientnet_v2_s": Published(42, 22, 3700, "efficientnet_v2_s-dd5fe13b.pth"),
        "efficientnet_v2_m": Published(59, 54, 6000, "efficientnet_v2_m-dc08266a.pth"),
        "efficientnet_v2_l": Published(81, 118, 11000, "efficientnet_v2_l-59c71312.pth"),
    }
    landmark = "features.0.0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, each block, the last convolution."""
        stem, *stages, last = module.features
        return [stem, *(block for stage in stages for block in stage), last]

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """Global average pooling and the linear layer."""
        from torch import nn

        return nn.Sequential(module.avgpool, nn.Flatten(1), *module.classifier)
