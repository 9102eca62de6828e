"""Perturbations of whole batches, on [0, 1] pixels, at the image's own size, before normalisation and resizing;
clipped.

Each is a function (pixels, keys, severity) -> pixels, registered under its name in PERTURBATIONS:
  pixels    float32 (n, 3, height, width), in [0, 1]; not changed
  keys      int64 (n,), from `random_bits.derive_keys`: an image's perturbation depends on its key and severity alone
  severity  float32 (n,) >= 0; 0 leaves the image as it is
and gives float32 of the same shape, in [0, 1].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hpo.vision.random_bits import derive_keys, normal, random_bits, uniform

Perturb = Callable[[Tensor, Tensor, Tensor], Tensor]


def gaussian_noise(pixels: Tensor, keys: Tensor, severity: Tensor) -> Tensor:
    """Adds independent normal noise to every value; severity is its standard deviation."""
    noise = normal(keys, math.prod(pixels.shape[1:])).view_as(pixels)
    return (pixels + noise * severity.view(-1, 1, 1, 1)).clamp_(0, 1)


def pixel_recolor(pixels: Tensor, keys: Tensor, severity: Tensor) -> Tensor:
    """Gives a random subset of the pixels uniformly random colours; severity is their share, rounded to whole
    pixels.
    """
    count, channels, height, width = pixels.shape
    order = random_bits(derive_keys(keys, "which pixels"), height * width)
    touched = (severity * (height * width)).round().long().clamp_(0, height * width)
    sorted_order = torch.sort(order, dim=1).values
    last = sorted_order.gather(1, (touched - 1).clamp_(min=0)[:, None])
    chosen = ((order <= last) & (touched > 0)[:, None]).view(count, 1, height, width)
    colours = uniform(derive_keys(keys, "which colours"), channels * height * width).view_as(pixels)
    return torch.where(chosen, colours, pixels)


PERTURBATIONS: dict[str, Perturb] = {"gaussian-noise": gaussian_noise, "pixel-recolor": pixel_recolor}


def perturb(name: str, pixels: Tensor, image_keys: Tensor, severity: float, replicate: int) -> Tensor:
    """The perturbation `name` of n images, seeded by image, perturbation and replicate."""
    keys = derive_keys(image_keys, name, "replicate", replicate)
    return PERTURBATIONS[name](pixels, keys, torch.full(keys.shape, severity, device=pixels.device))
