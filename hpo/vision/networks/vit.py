"""torchvision's Vision Transformers (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

import contextlib
from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork, built

if TYPE_CHECKING:
    from torch import Tensor, nn


class Vits(TorchvisionNetwork):
    """Vision Transformers, whose units are the patches (with class token and positions), then each encoder block."""

    published = {
        "vit_b_16": Published(13, 87, 3700, "vit_b_16-c867db91.pth"),
        "vit_b_32": Published(13, 88, 850, "vit_b_32-d86f8d99.pth"),
        "vit_l_16": Published(25, 304, 9800, "vit_l_16-852ce7e3.pth"),
        "vit_l_32": Published(25, 306, 2200, "vit_l_32-c7638314.pth"),
        "vit_h_14": Published(33, 632, 21000, "vit_h_14_swag-80465313.pth"),
    }
    input_sizes = {name: range(int(name[-2:]), 2**16, int(name[-2:])) for name in published}
    keys_without_decay = ("class_token", "pos_embedding")
    landmark = "conv_proj.weight"

    @staticmethod
    def build(name: str, classes: int, input_size: int) -> "nn.Module":
        """torchvision's network for images of one size."""
        return built(name, classes, **Vits.arguments(input_size))

    @staticmethod
    def arguments(input_size: int) -> dict[str, int]:
        """The encoder has a position for each patch."""
        return {"image_size": input_size}

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The patches, then each block of the encoder."""
        from hpo.vision.unit_layers import Patches

        return [Patches(module), *module.encoder.layers]

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """LayerNorm, the class token and the linear layer."""
        from torch import nn

        from hpo.vision.unit_layers import ClassToken

        return nn.Sequential(module.encoder.ln, ClassToken(), *module.heads)

    @staticmethod
    def adapted(weights: "dict[str, Tensor]", module: Any) -> "dict[str, Tensor]":
        """Position embeddings of another input size are interpolated, as torchvision does it."""
        from torchvision.models.vision_transformer import interpolate_embeddings

        if "encoder.pos_embedding" not in weights:
            return weights
        with contextlib.suppress(ValueError):  # no embedding of a square: said to be of the wrong shape
            return dict(interpolate_embeddings(module.image_size, module.patch_size, dict(weights)))
        return weights
