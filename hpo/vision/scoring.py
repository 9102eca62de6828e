"""Accuracy, clean and under each perturbation, on images that are the same for all trials of a study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpo.doors.perturbation import Perturbation
from hpo.errors import InputError, short
from hpo.trial_result import CLEAN
from hpo.vision.data.images import Split
from hpo.vision.device import SCORED_AT_ONCE_BY_A_CPU
from hpo.vision.inference import Inference
from hpo.vision.memory import Portions, fitting
from hpo.vision.random_bits import derive_keys

TUNING_REPLICATE = 0
"""The replicate of the tuning images' perturbations; the final report uses others."""
MAX_KEPT_BYTES = 2**30
"""Limit for the features of the tuning images that each worker keeps."""


@dataclass(frozen=True)
class Accuracy:
    """`correct` images of `total`."""

    correct: int
    total: int

    @property
    def fraction(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True)
class EvaluationSet:
    """The same images under several conditions, with `clean` first.

    conditions: pixels by name, uint8 (n, 3, height, width), or the frozen part's output for them; labels: int64 (n,);
    at_once: number of images scored at once; at_the_end: conditions that are scored when a training ends, not before.
    """

    conditions: dict[str, Tensor]
    labels: Tensor
    at_once: int = SCORED_AT_ONCE_BY_A_CPU
    at_the_end: frozenset[str] = frozenset()

    @property
    def of_every_epoch(self) -> "EvaluationSet":
        """Without what is scored at the end alone."""
        kept = {name: pixels for name, pixels in self.conditions.items() if name not in self.at_the_end}
        return replace(self, conditions=kept)

    def with_conditions(self, more: Mapping[str, Tensor]) -> "EvaluationSet":
        """And the same images under others: uint8 (n, height, width, 3), on any device."""
        added = {name: _by_channel(pixels, self.labels.device) for name, pixels in more.items()}
        return replace(self, conditions=self.conditions | added)


def perturb(
    member: type[Perturbation] | Perturbation,
    name: str,
    pixels: Tensor,
    image_keys: Tensor,
    severity: float,
    replicate: int,
) -> Tensor:
    """n images under a perturbation, seeded by image key, name and replicate. severity: the same for all images. Raises
    InputError if what a package's own code makes are no images.
    """
    keys = derive_keys(image_keys, name, "replicate", replicate)
    perturbed = member.apply(pixels, keys, torch.full(keys.shape, severity, device=pixels.device))
    check_images(name, "apply", perturbed, pixels)
    return perturbed


def check_images(name: str, method: str, made: Tensor, pixels: Tensor) -> None:
    """Raises InputError if what a perturbation's method made of `pixels` are no such images."""
    if not isinstance(made, Tensor):
        raise InputError(f"perturbation '{name}' made {short(made)} of images; its {method} must return a tensor")
    if made.shape != pixels.shape or made.dtype != pixels.dtype:
        raise InputError(
            f"perturbation '{name}' made {made.dtype} {tuple(made.shape)} of images that are "
            f"{pixels.dtype} {tuple(pixels.shape)}; its {method} must keep both"
        )
    if not bool(((made >= 0) & (made <= 1)).all()):  # NaN is neither
        low, high = made.min().item(), made.max().item()
        raise InputError(
            f"perturbation '{name}' made pixels from {low:g} to {high:g}; its {method} must keep to [0, 1]"
        )


def in_8_bits(pixels: Tensor) -> Tensor:
    """uint8, as an image file would hold pixels in [0, 1]."""
    return pixels.mul(255).round_().to(torch.uint8)


def build_evaluation_set(
    split: Split,
    perturbations: Sequence[Perturbation],
    device: torch.device,
    replicate: int = TUNING_REPLICATE,
    at_once: int = SCORED_AT_ONCE_BY_A_CPU,
) -> EvaluationSet:
    """The images of `split`, clean and under each perturbation, rounded to 8 bits as an image file would be."""
    clean = _by_channel(torch.from_numpy(split.pixels[split.rows]), device)
    keys = torch.from_numpy(split.keys).to(device)
    conditions = {CLEAN: clean}
    for perturbation in perturbations:
        name, severity = perturbation.name, perturbation.scored_severity
        batches = [
            in_8_bits(perturb(perturbation, name, images.float().div(255), batch_keys, severity, replicate))
            for images, batch_keys in zip(clean.split(at_once), keys.split(at_once), strict=True)
        ]
        conditions[name] = torch.cat(batches).contiguous(memory_format=torch.channels_last)
    return EvaluationSet(conditions, torch.from_numpy(split.labels).to(device), at_once)


def evaluation_set(split: Split, conditions: Mapping[str, Tensor], device: torch.device, at_once: int) -> EvaluationSet:
    """conditions: the images of `split` under each, uint8 (n, height, width, 3)."""
    labels = torch.from_numpy(split.labels).to(device)
    return EvaluationSet({}, labels, at_once).with_conditions(conditions)


def _by_channel(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.permute(0, 3, 1, 2).to(device)


def embedded(images: EvaluationSet, frozen_part: Inference) -> EvaluationSet | None:
    """The images' features after the frozen part, in the device's precision; None if they exceed MAX_KEPT_BYTES."""
    dtype = torch.bfloat16 if frozen_part.compute.bf16 else torch.float32
    bytes_of_one = frozen_part(images.conditions[CLEAN][:1]).numel() * dtype.itemsize
    if bytes_of_one * len(images.labels) * len(images.conditions) > MAX_KEPT_BYTES:
        return None
    features = {
        name: torch.cat([frozen_part(batch).to(dtype) for batch in pixels.split(images.at_once)])
        for name, pixels in images.conditions.items()
    }
    return replace(images, conditions=features)


def evaluate(classify: Callable[[Tensor], Tensor], images: EvaluationSet) -> dict[str, Accuracy]:
    """Accuracy by condition. classify: logits (n, classes) of a batch.

    Waits for the device once, at the end. Scores fewer images at once if memory runs out; raises MemoryError if not
    even SMALLEST_PORTION fit.
    """
    portions = Portions(images.at_once, images.at_once)
    counts = fitting(lambda: _count_correct(classify, images, portions.micro_batch), portions.split_batch)
    return {name: Accuracy(count, len(images.labels)) for name, count in zip(images.conditions, counts, strict=True)}


def _count_correct(classify: Callable[[Tensor], Tensor], images: EvaluationSet, at_once: int) -> list[int]:
    labels = images.labels.split(at_once)
    correct = [
        torch.stack([(classify(batch).argmax(1) == right).sum() for batch, right in zip(batches, labels, strict=True)])
        for batches in (pixels.split(at_once) for pixels in images.conditions.values())
    ]
    counts: list[int] = torch.stack(correct).sum(1).tolist()
    return counts
