"""torchvision's ResNet-18, -34 and -50."""

from typing import TYPE_CHECKING, Any

from hpo.doors.network import Network

if TYPE_CHECKING:
    from torch import nn


class ResNets(Network):
    """ResNets, whose units are the stem and the residual blocks."""

    names = ("resnet18", "resnet34", "resnet50")
    freezable = {"resnet18": 9, "resnet34": 17, "resnet50": 17}
    imagenet = {
        "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
        "resnet50": "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    }
    """torchvision's weights."""
    builds_without_memory = True

    @staticmethod
    def build(name: str, classes: int, input_size: int) -> "nn.Module":
        """A ResNet with random weights, for images of any size."""
        from hpo.vision.resnet_layers import build_resnet

        return build_resnet(name, classes)

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, then each residual block."""
        from torch import nn

        stem = nn.Sequential(module.conv1, module.bn1, module.relu, module.maxpool)
        blocks = [block for layer in (module.layer1, module.layer2, module.layer3, module.layer4) for block in layer]
        return [stem, *blocks]

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """Global average pooling and the linear layer."""
        from torch import nn

        return nn.Sequential(module.avgpool, nn.Flatten(1), module.fc)
