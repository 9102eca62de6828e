"""torchvision's DenseNets (Huang et al., CVPR 2017, arXiv:1608.06993)."""

import re
from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork

if TYPE_CHECKING:
    from torch import Tensor, nn


class DenseNets(TorchvisionNetwork):
    """DenseNets, whose units are the stem, then each dense layer; a transition belongs to the layer after it."""

    published = {
        "densenet121": Published(59, 8, 3100, "densenet121-a639ec97.pth"),
        "densenet169": Published(83, 14, 3800, "densenet169-b2777c0a.pth"),
        "densenet201": Published(99, 20, 4900, "densenet201-c1103571.pth"),
        "densenet161": Published(79, 29, 5800, "densenet161-8d451a50.pth"),
    }
    input_sizes = dict.fromkeys(published, range(29, 2**16))
    landmark = "features.conv0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, then each dense layer, whose output is its input and what it adds; with the last, BatchNorm."""
        from torch import nn

        from hpo.vision.unit_layers import Concatenating

        parts = dict(module.features.named_children())
        units: list[nn.Module] = [nn.Sequential(*(parts[name] for name in ("conv0", "norm0", "relu0", "pool0")))]
        for number in range(1, 5):
            first, *others = (Concatenating(layer) for layer in parts[f"denseblock{number}"].children())
            transition = parts.get(f"transition{number - 1}")
            units += [nn.Sequential(transition, first) if transition else first, *others]
        units[-1] = nn.Sequential(units[-1], parts["norm5"])
        return units

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """ReLU, global average pooling and the linear layer."""
        from torch import nn

        return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), module.classifier)

    @staticmethod
    def adapted(weights: "dict[str, Tensor]", module: Any) -> "dict[str, Tensor]":
        """Older releases, and the weights from ImageNet, have a dot in `norm.1`."""
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): weights[name] for name in weights}
