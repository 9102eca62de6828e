"""Training-time augmentation of a whole batch: flip, shifted crop, TrivialAugment where a study asks for it, and
perturbations at one strength.

All but the perturbations belong to ordinary fine-tuning and are the same in every trial, so that any gain over the
baseline is due to the perturbations. A share of the images, by default half, gets one perturbation each, with a
severity drawn between 0 and `strength` times twice the perturbation's own: a fixed severity would be overfitted, and
robustness to one kind of perturbation does not transfer to another.

The operations are planned on the CPU, for all images of a call at once, and executed on the device that holds the
images; that way nothing has to wait for a GPU to find out how many images get a perturbation.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hpo.doors.perturbation import AdaptivePerturbation, Perturbation
from hpo.vision.device import upload
from hpo.vision.random_bits import derive_keys, uniform
from hpo.vision.training.patches import draw_patches, inside
from hpo.vision.training.trivial_augment import Operations, draw_operations

SEVERITY_AT_FULL_STRENGTH = 2.0
"""Largest severity at strength 1, as a multiple of the perturbation's own."""
SHIFT_FRACTION = 1 / 16
"""The crop shifts by up to this fraction of the image's size, with reflected borders."""


@dataclass(frozen=True)
class Plan:
    """The operations on n images; all tensors are on the CPU. Images are reordered so that each perturbation gets a
    slice, and those without one come last.

    order: int64 (n,), the image at each position; back: int64 (n,), the inverse; geometry: float32 (n, 3), random draws
    for shifts and flip; keys: int64 (n,), and severities: float32 (n,), for the perturbations; patches: float32 (n, 4),
    see `draw_patches`, or None for whole images; operations: of TrivialAugment, if it is on; these five are in the new
    order. counts: number of images for each perturbation.
    """

    order: Tensor
    back: Tensor
    geometry: Tensor
    keys: Tensor
    severities: Tensor
    patches: Tensor | None
    operations: Operations | None
    counts: tuple[int, ...]

    @property
    def unperturbed(self) -> "Plan":
        """The same without perturbations."""
        return replace(self, counts=())


@dataclass(frozen=True)
class Chosen:
    """Those of a call's images that get a perturbation that is chosen by gradient.

    positions: int64 (n,), among the images, on the CPU; the others are on the images' device: pixels: float32
    (n, 3, height, width) in [0, 1], flipped and cropped; keys: int64 (n,); severities: float32 (n,); move: flips and
    crops other versions of them, uint8 (n, height, width, 3), in the same way, with the same TrivialAugment.
    """

    positions: Tensor
    pixels: Tensor
    keys: Tensor
    severities: Tensor
    move: Callable[[Tensor], Tensor]


ByGradient = Callable[[AdaptivePerturbation, Chosen], Tensor]
"""Perturbs these images: float32 (n, 3, height, width) in [0, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """strength: 0 to 1; perturbations: their weights say how they share the perturbed images."""

    strength: float
    perturbations: Sequence[Perturbation]
    horizontal_flip: bool
    perturbed_share: float = 0.5
    """Expected fraction of the images that get a perturbation."""
    perturbed_area: float = 1.0
    """The smallest fraction of such an image that is perturbed; its patch has between this and all of the area."""
    severity_draw: str = "uniform"
    """How severities are drawn between 0 and the largest: "uniform", or "beta" for Beta(2, 5)."""
    trivial_augment: bool = False
    """Whether all images first get one of TrivialAugment's operations."""

    @property
    def perturbs(self) -> bool:
        """Whether any image gets a perturbation."""
        return self.strength > 0 and self.perturbed_share > 0

    @property
    def is_against_itself(self) -> bool:
        """Whether images are perturbed against the network that is trained."""
        return self.strength > 0 and len(self.without_itself.perturbations) < len(self.perturbations)

    @property
    def without_itself(self) -> "Augmentation":
        """The same without what is perturbed against the network that is trained."""
        others = [p for p in self.perturbations if not (isinstance(p, AdaptivePerturbation) and p.against == "self")]
        return replace(self, perturbations=others)

    def __call__(self, images: Tensor, image_keys: Tensor, seed: int, epoch: int) -> Tensor:
        """Augments uint8 images (n, height, width, 3) on any device to float32 (n, 3, height, width) in [0, 1].

        image_keys: int64 (n,), on the CPU. The result for an image depends on its key, the seed and the epoch, never on
        the batch.
        """
        return self.apply(images, self.plan(image_keys, seed, epoch))

    def plan(self, image_keys: Tensor, seed: int, epoch: int) -> Plan:
        """The plan for images with these keys, int64 (n,) on the CPU."""
        keys = derive_keys(image_keys, "augmentation", seed, epoch)
        which, how_much = uniform(derive_keys(keys, "perturbation"), 2).unbind(1)
        if self.severity_draw == "beta":
            how_much = _from_beta_2_5(derive_keys(keys, "severity"))
        perturbed = self.perturbations if self.strength > 0 else ()
        group = torch.full_like(keys, len(perturbed))
        ends = [0.0, *itertools.accumulate(perturbation.weight for perturbation in perturbed)]
        for position, (first, last) in enumerate(itertools.pairwise(ends)):
            share = self.perturbed_share / ends[-1]
            group[(which >= first * share) & (which < last * share)] = position
        order = group.argsort(stable=True)
        counts = group.bincount(minlength=len(perturbed))[: len(perturbed)].tolist()
        severities = torch.zeros_like(how_much)
        perturbation_keys = keys.clone()
        for perturbation, mine in zip(perturbed, _slices(counts), strict=True):
            images = order[mine]
            largest = self.strength * SEVERITY_AT_FULL_STRENGTH * perturbation.scored_severity
            severities[mine] = how_much[images] * largest
            perturbation_keys[mine] = derive_keys(keys[images], perturbation.name)
        geometry = uniform(derive_keys(keys, "geometry"), 3)[order]
        patches = None
        if self.perturbed_area < 1:
            patches = draw_patches(derive_keys(keys, "patch"), self.perturbed_area)[order]
        operations = draw_operations(derive_keys(keys, "operation")[order]) if self.trivial_augment else None
        return Plan(order, order.argsort(), geometry, perturbation_keys, severities, patches, operations, tuple(counts))

    def apply(self, images: Tensor, plan: Plan, by_gradient: ByGradient | None = None) -> Tensor:
        """As `__call__`, with a plan made before; never waits for the images' device, unless what perturbs by gradient
        does.
        """
        device = images.device
        geometry = upload(plan.geometry, device)
        moved = self._flip_and_crop(images, upload(plan.order, device), geometry)
        if plan.operations:
            moved = plan.operations(moved)
        by_row = moved.float().div_(255)
        if sum(plan.counts):
            pixels, keys, severities = (
                by_row.permute(0, 3, 1, 2),
                upload(plan.keys, device),
                upload(plan.severities, device),
            )
            patches = None if plan.patches is None else upload(plan.patches, device)
            for perturbation, mine in zip(self.perturbations, _slices(plan.counts), strict=True):
                if mine.start == mine.stop:
                    continue  # a member need not know how to perturb no image at all
                if by_gradient and isinstance(perturbation, AdaptivePerturbation):
                    operations = plan.operations.of(mine) if plan.operations else None
                    move = partial(self._move, draws=geometry[mine], operations=operations)
                    some = Chosen(plan.order[mine], pixels[mine], keys[mine], severities[mine], move)
                    perturbed = by_gradient(perturbation, some)
                else:
                    perturbed = perturbation.apply(pixels[mine], keys[mine], severities[mine])
                if patches is not None:
                    perturbed = torch.where(inside(patches[mine], *pixels.shape[2:]), perturbed, pixels[mine])
                pixels[mine] = perturbed
        return by_row.index_select(0, upload(plan.back, device)).permute(0, 3, 1, 2)

    def _move(self, images: Tensor, draws: Tensor, operations: Operations | None) -> Tensor:
        moved = self._flip_and_crop(images, torch.arange(len(images), device=images.device), draws)
        if operations:
            moved = operations(moved)
        return moved.permute(0, 3, 1, 2).float().div_(255)

    def _flip_and_crop(self, images: Tensor, order: Tensor, draws: Tensor) -> Tensor:
        _, height, width, _ = images.shape
        rows = _shifted(height, draws[:, 0])
        columns = _shifted(width, draws[:, 1])
        if self.horizontal_flip:
            columns = torch.where((draws[:, 2] < 0.5)[:, None], columns, columns.flip(1))
        return images[order[:, None, None], rows[:, :, None], columns[:, None, :]]


def _from_beta_2_5(keys: Tensor) -> Tensor:
    """float32 (n,), in [0, 1), from the distribution Beta(2, 5): that of the second smallest of six uniform numbers."""
    return uniform(keys, 6).sort(dim=1).values[:, 1]


def _slices(counts: Sequence[int]) -> list[slice]:
    """The slice of each group in a sequence of consecutive groups with these sizes."""
    ends = list(itertools.accumulate(counts))
    return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]


def _shifted(size: int, draws: Tensor) -> Tensor:
    """Positions 0 to size - 1, int64 (n, size), shifted by up to SHIFT_FRACTION of it, reflected at the borders."""
    limit = round(size * SHIFT_FRACTION)
    shift = (draws * (2 * limit + 1)).long() - limit
    positions = (torch.arange(size, device=draws.device) + shift[:, None]).abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)
