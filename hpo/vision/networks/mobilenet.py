"""torchvision's MobileNets V3 (Howard et al., ICCV 2019, arXiv:1905.02244)."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork

if TYPE_CHECKING:
    from torch import nn


class MobileNets(TorchvisionNetwork):
    """MobileNets V3, whose units are the stem, each block, and the last convolution."""

    published = {
        "mobilenet_v3_small": Published(13, 2, 390, "mobilenet_v3_small-047dcff4.pth"),
        "mobilenet_v3_large": Published(17, 6, 1100, "mobilenet_v3_large-5c1a4163.pth"),
    }
    landmark = "features.0.0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, each block, the last convolution."""
        return list(module.features)

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """Global average pooling and two linear layers, the last of which is replaced."""
        from torch import nn

        return nn.Sequential(module.avgpool, nn.Flatten(1), *module.classifier)
