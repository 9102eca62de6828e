"""A small network of each family, of the library's own classes, under the name of one of the family's networks."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    mobilenetv3,
    regnet,
    swin_transformer,
    vision_transformer,
)
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import StochasticDepth

SIZE = 32


def _convnext(**options: Any) -> Any:
    stages = [(8, 16, 1), (16, 24, 2), (24, 32, 1), (32, None, 1)]
    settings = [convnext.CNBlockConfig(*stage) for stage in stages]
    return convnext.ConvNeXt(settings, 0.1, layer_scale=0.5, **options)


def _densenet(**options: Any) -> Any:
    return densenet.DenseNet(4, (2, 1, 2, 2), 8, drop_rate=0, **options)


def _efficientnet(**options: Any) -> Any:
    settings = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        efficientnet.FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        efficientnet.MBConvConfig(2, 3, 2, 16, 16, 2),
    ]
    return efficientnet.EfficientNet(settings, 0.2, 0.2, last_channel=32, **options)


def _mobilenet(**options: Any) -> Any:
    rows = [(8, 3, 16, 8, True, "RE", 2), (8, 5, 16, 16, False, "HS", 2), (16, 5, 32, 16, True, "HS", 1)]
    settings = [mobilenetv3.InvertedResidualConfig(*row, 1, 1) for row in rows]
    return mobilenetv3.MobileNetV3(settings, 32, dropout=0.2, **options)


def _regnet(**options: Any) -> Any:
    parameters = regnet.BlockParams.from_init_params(depth=4, w_0=8, w_a=8, w_m=2, group_width=4, se_ratio=0.25)
    return regnet.RegNet(parameters, stem_width=8, **options)


def _swin(**options: Any) -> Any:
    return swin_transformer.SwinTransformer([4, 4], 8, [1, 2, 1, 1], [1, 2, 2, 4], [4, 4], **options)


def _swin_v2(**options: Any) -> Any:
    newer = {
        "block": swin_transformer.SwinTransformerBlockV2,
        "downsample_layer": swin_transformer.PatchMergingV2,
    }
    return swin_transformer.SwinTransformer([4, 4], 8, [1, 2, 1, 1], [1, 2, 2, 4], [4, 4], **newer, **options)


def _vit(image_size: int = 2 * SIZE, **options: Any) -> Any:
    return vision_transformer.VisionTransformer(image_size, 16, 3, 2, 16, 32, **options)


def _resnext(**options: Any) -> Any:
    return ResNet(Bottleneck, [1, 2, 1, 1], groups=4, width_per_group=4, **options)


SMALL: dict[str, Callable[..., nn.Module]] = {
    "convnext_tiny": _convnext,
    "densenet121": _densenet,
    "efficientnet_v2_s": _efficientnet,
    "mobilenet_v3_small": _mobilenet,
    "regnet_y_400mf": _regnet,
    "resnext50_32x4d": _resnext,
    "swin_t": _swin,
    "swin_v2_t": _swin_v2,
    "vit_b_16": _vit,
}


def small(name: str, num_classes: int, **options: Any) -> nn.Module:
    """In place of torchvision's get_model, with a last layer that is not all zeros, as a Vision Transformer's is."""
    module: nn.Module = SMALL[name](num_classes=num_classes, **options)
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.normal_(last.weight, 0, 0.1)
    return module


def is_random(module: nn.Module) -> bool:
    """Whether it has dropout or stochastic depth that does something."""
    return any(part.p > 0 for part in module.modules() if isinstance(part, nn.Dropout | StochasticDepth))
