"""Random rectangles of images, to which a perturbation may be confined: noise on a patch costs less clean accuracy than
noise on the whole image (Lopes et al., "Improving Robustness Without Sacrificing Accuracy with Patch Gaussian
Augmentation", arXiv:1906.02611).
"""

import torch
from torch import Tensor

from hpo.vision.random_bits import uniform


def draw_patches(keys: Tensor, smallest: float) -> Tensor:
    """float32 (n, 4), from keys, int64 (n,): height and width as shares of the image's, and how much of the rows and
    columns that are left over lie before the patch, 0 to 1. The share of the area is uniform from `smallest` to 1.
    """
    size, shape, above, before = uniform(keys, 4).unbind(1)
    area = smallest + (1 - smallest) * size
    return torch.stack([area**shape, area ** (1 - shape), above, before], dim=1)


def inside(patches: Tensor, height: int, width: int) -> Tensor:
    """bool (n, 1, height, width), on the device of the patches: whether a pixel lies in its image's patch."""
    tall, wide, above, before = patches.unbind(1)
    return (_span(height, tall, above)[:, :, None] & _span(width, wide, before)[:, None, :])[:, None]


def _span(size: int, share: Tensor, before: Tensor) -> Tensor:
    """bool (n, size): consecutive positions, at least one."""
    length = (share * size).round().clamp(min=1)
    first = torch.minimum((before * (size - length + 1)).floor(), size - length)[:, None]
    positions = torch.arange(size, device=share.device)
    return (positions >= first) & (positions < first + length[:, None])
