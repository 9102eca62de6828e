"""fine_tune(): a generator that trains a network and yields what it measured after each epoch.

It knows nothing of trials: its caller reports, prunes and keeps the weights. The shuffle and the augmentation of an
epoch depend on (seed, epoch, image) alone.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hpo.vision.augmentation import Augmentation
from hpo.vision.device import Compute
from hpo.vision.evaluation import Accuracy, EvaluationSet, evaluate
from hpo.vision.images import Split
from hpo.vision.network import Classifier

MOMENTUM = 0.9
WARMUP_SHARE = 0.1
"""Of all updates: the learning rate rises linearly, then falls as half a cosine to 0."""


@dataclass(frozen=True)
class Recipe:
    """How to train: epochs, images an update, peak learning rate, regularisation, augmentation, seed."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    augmentation: Augmentation
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave. epoch: from 1; loss: the mean training loss; accuracies: by condition, clean first."""

    epoch: int
    loss: float
    accuracies: dict[str, Accuracy]
    images_per_second: float
    seconds: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)


def fine_tune(
    network: Classifier, train: Split, tuning: EvaluationSet, recipe: Recipe, compute: Compute
) -> Iterator[EpochResult]:
    """Trains `network` in place and yields one result an epoch; ends early when the loss is no longer finite."""
    network.to(compute.device)
    optimizer = _optimizer(network, recipe)
    updates_per_epoch = math.ceil(len(train) / recipe.batch_size)
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        network.train()
        losses = []
        for number, (images, labels) in enumerate(_batches(train, recipe, epoch, compute.device)):
            progress = (epoch - 1 + number / updates_per_epoch) / recipe.epochs
            loss = _update(network, optimizer, images, labels, recipe, compute, progress)
            losses.append(loss * len(labels))
        mean_loss = float(torch.stack(losses).sum()) / len(train)
        trained = time.perf_counter()
        yield EpochResult(
            epoch=epoch,
            loss=mean_loss,
            accuracies=dict(evaluate(network, tuning, compute)),
            images_per_second=len(train) / (trained - started),
            seconds=time.perf_counter() - started,
        )
        if not math.isfinite(mean_loss):
            return


def _update(
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    compute: Compute,
    progress: float,
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * _schedule(progress)
    with compute.autocast():
        loss = F.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _schedule(progress: float) -> float:
    """The share of the peak learning rate at `progress` (0 to 1): linear warm-up, then half a cosine."""
    if progress < WARMUP_SHARE:
        return (progress + WARMUP_SHARE / 10) / (WARMUP_SHARE * 1.1)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def _batches(train: Split, recipe: Recipe, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels, labels) of each batch of one epoch; a last batch of one image, which BatchNorm cannot take, is left
    out.
    """
    shuffle = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    for chosen in torch.randperm(len(train), generator=shuffle).split(recipe.batch_size):
        if len(chosen) == 1 and len(train) > 1:
            continue
        rows = chosen.numpy()
        images = torch.from_numpy(train.pixels[train.rows[rows]]).to(device, non_blocking=True)
        keys = torch.from_numpy(train.keys[rows]).to(device, non_blocking=True)
        labels = torch.from_numpy(train.labels[rows]).to(device, non_blocking=True)
        yield recipe.augmentation(images, keys, recipe.seed, epoch), labels


def _optimizer(network: Classifier, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum; BatchNorm and biases (all one-dimensional) without weight decay."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, nesterov=True)
