"""Training-time augmentation of a whole batch: flip, shifted crop, and perturbations at one strength.

Flip and crop belong to plain fine-tuning and are the same in every trial, so that what a trial gains over the
baseline is owed to the perturbations. A share of the images, half of them if the trial does not say otherwise, gets
one perturbation of the objective each, at a severity drawn for it uniformly between 0 and `strength` times twice the
severity that is scored: one fixed severity would be overfitted, and one family alone does not carry over to another.

What happens to which image is planned on the CPU, for all images of a call at once, and done on the device that holds
them: so that a GPU is never asked how many images a perturbation has got.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.doors.perturbation import Perturbation
from hpo.vision.device import upload
from hpo.vision.random_bits import derive_keys, uniform

SEVERITY_AT_FULL_STRENGTH = 2.0
"""In multiples of the severity that is scored."""
SHIFT_FRACTION = 1 / 16
"""The crop moves by up to this share of the image's size, with reflected borders."""


@dataclass(frozen=True)
class Plan:
    """What happens to n images, on the CPU. Images of one perturbation stand together, so that it takes a slice.

    order: int64 (n,), which image stands where; back: int64 (n,), where each has gone; geometry: float32 (n, 3), draws
    for shifts and flip; keys: int64 (n,), and severities: float32 (n,), of the perturbations, these four in that order;
    counts: images of each perturbation. Those that get none come last.
    """

    order: Tensor
    back: Tensor
    geometry: Tensor
    keys: Tensor
    severities: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Augmentation:
    """strength: 0 to 1; perturbations: those that are scored."""

    strength: float
    perturbations: Sequence[Perturbation]
    horizontal_flip: bool
    perturbed_share: float = 0.5
    """Of the images."""

    def __call__(self, images: Tensor, image_keys: Tensor, seed: int, epoch: int) -> Tensor:
        """float32 (n, 3, height, width) in [0, 1], from uint8 (n, height, width, 3) on any device and their keys, int64
        (n,) on the CPU.

        What happens to an image depends on its key, the seed and the epoch, never on the batch.
        """
        return self.apply(images, self.plan(image_keys, seed, epoch))

    def plan(self, image_keys: Tensor, seed: int, epoch: int) -> Plan:
        """Of images with these keys, int64 (n,) on the CPU."""
        keys = derive_keys(image_keys, "augmentation", seed, epoch)
        which, how_much = uniform(derive_keys(keys, "perturbation"), 2).unbind(1)
        perturbed = self.perturbations if self.strength > 0 else ()
        group = torch.full_like(keys, len(perturbed))
        for position in range(len(perturbed)):
            share = self.perturbed_share / len(perturbed)
            group[(which >= position * share) & (which < (position + 1) * share)] = position
        order = group.argsort(stable=True)
        counts = group.bincount(minlength=len(perturbed))[: len(perturbed)].tolist()
        severities = torch.zeros_like(how_much)
        perturbation_keys = keys.clone()
        for perturbation, mine in zip(perturbed, _slices(counts), strict=True):
            images = order[mine]
            most = self.strength * SEVERITY_AT_FULL_STRENGTH * perturbation.scored_severity
            severities[mine] = how_much[images] * most
            perturbation_keys[mine] = derive_keys(keys[images], perturbation.name)
        geometry = uniform(derive_keys(keys, "geometry"), 3)[order]
        return Plan(order, order.argsort(), geometry, perturbation_keys, severities, tuple(counts))

    def apply(self, images: Tensor, plan: Plan) -> Tensor:
        """As `__call__`, on the device of the images, which is never waited for."""
        device = images.device
        shifted = self._flip_and_crop(images, upload(plan.order, device), upload(plan.geometry, device))
        by_row = shifted.float().div_(255)
        if sum(plan.counts):
            pixels, keys, severities = (
                by_row.permute(0, 3, 1, 2),
                upload(plan.keys, device),
                upload(plan.severities, device),
            )
            for perturbation, mine in zip(self.perturbations, _slices(plan.counts), strict=True):
                pixels[mine] = perturbation.apply(pixels[mine], keys[mine], severities[mine])
        return by_row.index_select(0, upload(plan.back, device)).permute(0, 3, 1, 2)

    def _flip_and_crop(self, images: Tensor, order: Tensor, draws: Tensor) -> Tensor:
        _, height, width, _ = images.shape
        rows = _shifted(height, draws[:, 0])
        columns = _shifted(width, draws[:, 1])
        if self.horizontal_flip:
            columns = torch.where((draws[:, 2] < 0.5)[:, None], columns, columns.flip(1))
        return images[order[:, None, None], rows[:, :, None], columns[:, None, :]]


def _slices(counts: Sequence[int]) -> list[slice]:
    """Of things that stand one kind after the other, so many of each."""
    ends = list(itertools.accumulate(counts))
    return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]


def _shifted(size: int, draws: Tensor) -> Tensor:
    """int64 (n, size): positions 0 to size - 1, moved by up to SHIFT_FRACTION of the size, reflected at the borders."""
    most = round(size * SHIFT_FRACTION)
    shift = (draws * (2 * most + 1)).long() - most
    positions = (torch.arange(size, device=draws.device) + shift[:, None]).abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)
