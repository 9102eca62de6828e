"""torchvision's ResNets, ResNeXts and Wide ResNets."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork

if TYPE_CHECKING:
    from torch import nn


class ResNets(TorchvisionNetwork):
    """ResNets, ResNeXts and Wide ResNets, whose units are the stem and the residual blocks."""

    published = {
        "resnet18": Published(9, 12, 550, "resnet18-f37072fd.pth"),
        "resnet34": Published(17, 22, 850, "resnet34-b627a593.pth"),
        "resnet50": Published(17, 26, 1950, "resnet50-11ad3fa6.pth"),
        "resnet101": Published(34, 44, 3000, "resnet101-cd907fc2.pth"),
        "resnet152": Published(51, 60, 4300, "resnet152-f82ba261.pth"),
        "resnext50_32x4d": Published(17, 25, 2700, "resnext50_32x4d-1a0047aa.pth"),
        "resnext101_32x8d": Published(34, 89, 5900, "resnext101_32x8d-110c445d.pth"),
        "resnext101_64x4d": Published(34, 84, 5900, "resnext101_64x4d-173b62eb.pth"),
        "wide_resnet50_2": Published(17, 69, 2700, "wide_resnet50_2-9ba9bcbe.pth"),
        "wide_resnet101_2": Published(34, 127, 4000, "wide_resnet101_2-d733dc28.pth"),
    }
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
