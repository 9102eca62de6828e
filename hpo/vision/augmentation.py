"""Training-time augmentation of a whole batch: flip, shifted crop, and perturbations at one strength.

Flip and crop belong to plain fine-tuning and are the same in every trial, so that what a trial gains over the
baseline is owed to the perturbations. About half of the images stay unperturbed; each of the others gets one
perturbation of the objective, at a severity drawn for it uniformly between 0 and `strength` times twice the severity
that is scored: one fixed severity would be overfitted, and one family alone does not carry over to another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.vision.perturbations import PERTURBATIONS
from hpo.vision.random_bits import derive_keys, uniform

PERTURBED_SHARE = 0.5
SEVERITY_AT_FULL_STRENGTH = 2.0
"""In multiples of the severity that is scored."""
SHIFT_FRACTION = 1 / 16
"""The crop moves by up to this share of the image's size, with reflected borders."""


@dataclass(frozen=True)
class Augmentation:
    """strength: 0 to 1; perturbations: (name, the severity that is scored)."""

    strength: float
    perturbations: Sequence[tuple[str, float]]
    horizontal_flip: bool

    def __call__(self, images: Tensor, image_keys: Tensor, seed: int, epoch: int) -> Tensor:
        """float32 (n, 3, height, width) in [0, 1], from uint8 (n, height, width, 3).

        What happens to an image depends on its key, the seed and the epoch, never on the batch.
        """
        keys = derive_keys(image_keys, "augmentation", seed, epoch)
        pixels = self._flip_and_crop(images, uniform(derive_keys(keys, "geometry"), 3))
        return self._perturb(pixels.permute(0, 3, 1, 2).float().div_(255), keys)

    def _flip_and_crop(self, images: Tensor, draws: Tensor) -> Tensor:
        count, height, width, _ = images.shape
        rows = _shifted(height, draws[:, 0])
        columns = _shifted(width, draws[:, 1])
        if self.horizontal_flip:
            columns = torch.where((draws[:, 2] < 0.5)[:, None], columns, columns.flip(1))
        return images[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _perturb(self, pixels: Tensor, keys: Tensor) -> Tensor:
        if self.strength == 0:
            return pixels
        which, how_much = uniform(derive_keys(keys, "perturbation"), 2).unbind(1)
        for position, (name, scored) in enumerate(self.perturbations):
            share = PERTURBED_SHARE / len(self.perturbations)
            mine = ((which >= position * share) & (which < (position + 1) * share)).nonzero().squeeze(1)
            severity = how_much[mine] * (self.strength * SEVERITY_AT_FULL_STRENGTH * scored)
            pixels[mine] = PERTURBATIONS[name](pixels[mine], derive_keys(keys[mine], name), severity)
        return pixels


def _shifted(size: int, draws: Tensor) -> Tensor:
    """int64 (n, size): positions 0 to size - 1, moved by up to SHIFT_FRACTION of the size, reflected at the borders."""
    most = round(size * SHIFT_FRACTION)
    shift = (draws * (2 * most + 1)).long() - most
    positions = (torch.arange(size, device=draws.device) + shift[:, None]).abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)
