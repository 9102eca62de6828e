"""Accuracy as correct of total, clean and under each perturbation, on images that are the same for all trials of a
study.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.vision.device import Compute
from hpo.vision.images import Split
from hpo.vision.network import Classifier
from hpo.vision.perturbations import perturb

CLEAN = "clean"
BATCH_SIZE = 250
TUNING_REPLICATE = 0
"""The final report draws other replicates."""


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
    """The same images under several conditions. conditions: name -> uint8 (n, 3, height, width); labels: int64 (n,)."""

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


@torch.inference_mode()
def evaluate(network: Classifier, images: EvaluationSet, compute: Compute) -> Iterator[tuple[str, Accuracy]]:
    """Yields (condition, accuracy). Leaves the network in eval mode."""
    network.eval()
    for name, pixels in images.conditions.items():
        correct = 0
        for batch, labels in zip(pixels.split(BATCH_SIZE), images.labels.split(BATCH_SIZE), strict=True):
            with compute.autocast():
                logits = network(batch.float().div(255))
            correct += int((logits.argmax(1) == labels).sum())
        yield name, Accuracy(correct, len(images.labels))
