"""torchvision's ResNets, with identical tensors and random initialisation, without importing torchvision: that imports
PyTorch's compiler too, which would delay a worker's start as much as PyTorch itself.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385. The stride of a bottleneck is in
its 3x3 convolution, as in torchvision ("v1.5"). ResNeXts (Xie et al., CVPR 2017, arXiv:1611.05431) have bottlenecks in
groups, Wide ResNets (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146) wider ones.
"""

from typing import cast

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1
    runs_in_order = True

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(channels, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.bn2(self.conv2(inner))
        inner += features if self.downsample is None else self.downsample(features)
        return cast(Tensor, self.relu(inner))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, with a shortcut."""

    expansion = 4
    runs_in_order = True

    def __init__(self, channels: int, width: int, stride: int, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner = width * group_width // 64 * groups
        self.conv1 = _convolution(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _convolution(inner, inner, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _convolution(inner, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels, width * self.expansion, stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        inner += features if self.downsample is None else self.downsample(features)
        return cast(Tensor, self.relu(inner))


class ResNet(nn.Module):
    """Normalised images, float32 (n, 3, height, width), to logits (n, classes)."""

    def __init__(self, layout: "Layout", classes: int) -> None:
        super().__init__()
        block, depths, options = layout
        self.conv1 = _convolution(3, WIDTHS[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, layers = WIDTHS[0], []
        for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, width, 2 if number and not position else 1, **options))
                channels = width * block.expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # on meta this would import the compiler
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return cast(Tensor, self.fc(torch.flatten(self.avgpool(features), 1)))


Layout = tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int], dict[str, int]]
"""The kind of blocks, how many of each width, and what else they are made with."""
WIDE = {"group_width": 128}
RESNETS: dict[str, Layout] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), {}),
    "resnet34": (BasicBlock, (3, 4, 6, 3), {}),
    "resnet50": (Bottleneck, (3, 4, 6, 3), {}),
    "resnet101": (Bottleneck, (3, 4, 23, 3), {}),
    "resnet152": (Bottleneck, (3, 8, 36, 3), {}),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), {"groups": 32, "group_width": 4}),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), {"groups": 32, "group_width": 8}),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), {"groups": 64, "group_width": 4}),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), WIDE),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), WIDE),
}


def build_resnet(name: str, classes: int) -> ResNet:
    """A randomly initialised ResNet. name: a key of RESNETS."""
    return ResNet(RESNETS[name], classes)


def _convolution(channels: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, padding=size // 2, groups=groups, bias=False)


def _downsample(channels: int, width: int, stride: int) -> nn.Module | None:
    """The projection of a block's shortcut; None if its input and output have the same shape."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(_convolution(channels, width, 1, stride), nn.BatchNorm2d(width))
