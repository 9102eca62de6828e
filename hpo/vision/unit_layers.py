"""Layers that are written out in the forward pass of torchvision's networks, as modules, so that networks fall into
units that run in order. They share the networks' parameters.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn


class Concatenating(nn.Module):
    """A dense layer behind what it is given: maps (n, channels, h, w) to (n, channels + growth, h, w)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, self.layer(maps)], 1)


class Patches(nn.Module):
    """Images (n, 3, size, size) to tokens (n, 1 + patches, width): the class token, then the patches, with positions.

    vit: torchvision's VisionTransformer.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.conv_proj = vit.conv_proj
        self.class_token = vit.class_token
        self.pos_embedding = vit.encoder.pos_embedding

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).permute(0, 2, 1)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        return cast(Tensor, tokens + self.pos_embedding)


class ClassToken(nn.Module):
    """Tokens (n, tokens, width) to the first of each image (n, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]
