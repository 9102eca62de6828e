"""Accuracy as correct of total, clean and under each perturbation, on images that are the same for all trials of a
study.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.vision.images import Split
from hpo.vision.inference import Inference
from hpo.vision.perturbations import perturb

CLEAN = "clean"
BATCH_SIZE = 250
TUNING_REPLICATE = 0
"""The final report draws other replicates."""
MOST_KEPT_BYTES = 2**30
"""Of features of the tuning images, in each worker."""


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
    """The same images under several conditions, `clean` first.

    conditions: name -> uint8 (n, 3, height, width), or what a frozen part made of them; labels: int64 (n,).
    """

    conditions: dict[str, Tensor]
    labels: Tensor


def build_evaluation_set(
    split: Split,
    perturbations: Sequence[tuple[str, float]],
    device: torch.device,
    replicate: int = TUNING_REPLICATE,
) -> EvaluationSet:
    """The images of `split`, clean and under each (name, severity), rounded to 8 bits as an image file would be."""
    clean = torch.from_numpy(split.pixels[split.rows]).permute(0, 3, 1, 2).to(device)
    keys = torch.from_numpy(split.keys).to(device)
    conditions = {CLEAN: clean}
    for name, severity in perturbations:
        batches = [
            perturb(name, images.float().div(255), batch_keys, severity, replicate).mul_(255).round_().to(torch.uint8)
            for images, batch_keys in zip(clean.split(BATCH_SIZE), keys.split(BATCH_SIZE), strict=True)
        ]
        conditions[name] = torch.cat(batches).contiguous(memory_format=torch.channels_last)
    return EvaluationSet(conditions, torch.from_numpy(split.labels).to(device))


def embedded(images: EvaluationSet, frozen_part: Inference) -> EvaluationSet | None:
    """What a frozen part makes of the images, in the device's precision; None if it is too much to keep."""
    dtype = torch.bfloat16 if frozen_part.compute.bf16 else torch.float32
    bytes_of_one = frozen_part(images.conditions[CLEAN][:1]).numel() * dtype.itemsize
    if bytes_of_one * len(images.labels) * len(images.conditions) > MOST_KEPT_BYTES:
        return None
    return EvaluationSet(
        {
            name: torch.cat([frozen_part(batch).to(dtype) for batch in pixels.split(BATCH_SIZE)])
            for name, pixels in images.conditions.items()
        },
        images.labels,
    )


def evaluate(classify: Callable[[Tensor], Tensor], images: EvaluationSet) -> Iterator[tuple[str, Accuracy]]:
    """Yields (condition, accuracy). classify: logits (n, classes) of a batch."""
    for name, pixels in images.conditions.items():
        correct = sum(
            (classify(batch).argmax(1) == labels).sum()
            for batch, labels in zip(pixels.split(BATCH_SIZE), images.labels.split(BATCH_SIZE), strict=True)
        )
        yield name, Accuracy(int(correct), len(images.labels))
