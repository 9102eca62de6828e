"""fine_tune(): a generator that trains a network and yields what it measured after each epoch.

It knows nothing of trials: its caller reports, prunes and keeps checkpoints. The shuffle and the augmentation of an
epoch depend on (seed, epoch, image) alone, so that a training that goes on from a checkpoint gives what the unbroken
one would have given.
"""

import math
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from hpo.vision.augmentation import Augmentation
from hpo.vision.device import Compute
from hpo.vision.evaluation import BATCH_SIZE, Accuracy, EvaluationSet, embedded, evaluate
from hpo.vision.images import Split
from hpo.vision.inference import Inference
from hpo.vision.network import Classifier

MOMENTUM = 0.9
WARMUP_SHARE = 0.1
"""Of all updates: the learning rate rises linearly, then falls as half a cosine."""
LAST_RATE = 0.3
"""Of the peak: where it ends when weights are averaged, which a rate of 0 would gain nothing; else it ends at 0."""
IMAGES_BETWEEN_AVERAGES = 256
"""Averaging more often costs time and changes nothing."""
AVERAGING_ETA = 1
"""Of polynomial-decay averaging: 0 weighs all weights so far alike; 1 by how late they came; 8 the last tenth most.
With a high learning rate a long average scores far better in early epochs, and as well in the end (benchmarks/LOG.md).
"""
BATCH_NORM_IMAGES = 1000
"""Of so many training images the averaged network's BatchNorm statistics are measured after each epoch."""
MOST_OF_GPU = 0.25
"""Of a GPU's free memory: what the training images may take."""
SMALLEST_MICRO_BATCH = 8
"""BatchNorm's statistics are those of a micro-batch, and of fewer images they are worth little."""


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
    averages: bool = True
    """Whether an average of the weights is scored and kept: not from scratch, where they move too far for that."""


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


class Training:
    """A network in training: all that a checkpoint holds.

    averaged: what is scored and kept: the network with the average of the weights so far, or the network itself;
    micro_batch: images that the device takes at once, fewer than a batch when memory was short.
    """

    def __init__(self, network: Classifier, recipe: Recipe, compute: Compute) -> None:
        self.network = network.to(compute.device)
        self.recipe = recipe
        self.compute = compute
        self.frozen_part = Inference(network.frozen_part, compute)
        self.trainable_part = network.trainable_part
        self.optimizer = _optimizer(network, recipe)
        self.averaged = deepcopy(self.network).eval().requires_grad_(False) if recipe.averages else self.network
        self.averages_done = 0
        self.epochs_done = 0
        self.micro_batch = recipe.batch_size

    @property
    def was_split(self) -> bool:
        return self.micro_batch < self.recipe.batch_size

    @torch.no_grad()
    def average(self) -> None:
        """Polynomial-decay averaging (Shamir and Zhang, ICML 2013, arXiv:1212.1824): the weights between two epochs
        score nearly as if the learning rate had fallen to 0 there, so that early epochs tell more of the last.
        """
        self.averages_done += 1
        share = (AVERAGING_ETA + 1) / (self.averages_done + AVERAGING_ETA)
        averaged, learned = (
            [parameter.data for parameter in network.trainable_part.parameters()]
            for network in (self.averaged, self.network)
        )
        torch._foreach_lerp_(averaged, learned, share)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, BatchNorm statistics, momentum and averages, by name."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.recipe.averages:
            tensors |= {
                f"averaged.{name}": tensor for name, tensor in self.averaged.trainable_part.state_dict().items()
            }
        for name, parameter in self.network.named_parameters():
            if "momentum_buffer" in self.optimizer.state[parameter]:
                tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        counts = {
            "epochs_done": self.epochs_done,
            "averages_done": self.averages_done,
            "micro_batch": self.micro_batch,
        }
        return tensors | {name: torch.tensor(value) for name, value in counts.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `tensors()` of a training with the same recipe gave."""
        self.network.load_state_dict(_below("network.", tensors))
        if self.recipe.averages:
            self.averaged.trainable_part.load_state_dict(_below("averaged.", tensors))
        for name, parameter in self.network.named_parameters():
            if (momentum := tensors.get(f"momentum.{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.epochs_done = int(tensors["epochs_done"])
        self.averages_done = int(tensors["averages_done"])
        self.micro_batch = int(tensors["micro_batch"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fine_tune(training: Training, train: Split, tuning: EvaluationSet) -> Iterator[EpochResult]:
    """Trains in place and yields one result an epoch; ends early when the loss is no longer finite.

    Raises MemoryError when not even SMALLEST_MICRO_BATCH images fit into memory.
    """
    batches = _Batches(train, training.compute.device)
    features = embedded(tuning, training.frozen_part)
    some_features = _some_features(training, batches)
    for epoch in range(training.epochs_done + 1, training.recipe.epochs + 1):
        started = time.perf_counter()
        mean_loss = _train_epoch(training, batches, epoch)
        if training.recipe.averages:
            with training.compute.autocast():
                update_bn(some_features, training.averaged.trainable_part)
        trained = time.perf_counter()
        averaged = training.averaged.trainable_part if features else training.averaged
        accuracies = dict(evaluate(Inference(averaged, training.compute), features or tuning))
        training.epochs_done = epoch
        yield EpochResult(
            epoch=epoch,
            loss=mean_loss,
            accuracies=accuracies,
            images_per_second=len(train) / (trained - started),
            seconds=time.perf_counter() - started,
        )
        if not math.isfinite(mean_loss):
            return


def _train_epoch(training: Training, batches: "_Batches", epoch: int) -> float:
    """The mean loss of the epoch's images."""
    recipe = training.recipe
    updates = math.ceil(len(batches) / recipe.batch_size)
    averaged_every = max(1, IMAGES_BETWEEN_AVERAGES // recipe.batch_size)
    losses = []
    training.network.train()
    for number, (images, labels) in enumerate(batches.of_epoch(recipe, epoch, recipe.batch_size)):
        progress = (epoch - 1 + number / updates) / recipe.epochs
        losses.append(_update(training, images, labels, progress) * len(labels))
        if recipe.averages and ((number + 1) % averaged_every == 0 or number + 1 == updates):
            training.average()
    return float(torch.stack(losses).sum()) / len(batches)


def _some_features(training: Training, batches: "_Batches") -> list[Tensor]:
    """What the frozen part makes of BATCH_NORM_IMAGES augmented images, in batches: BatchNorm's statistics for averaged
    weights are not the averages of its statistics, but must be measured (Izmailov et al., UAI 2018, arXiv:1803.05407).
    """
    count = math.ceil(BATCH_NORM_IMAGES / BATCH_SIZE) if training.recipe.averages else 0
    images = islice(batches.of_epoch(training.recipe, 1, BATCH_SIZE), count)
    return [training.frozen_part(some) for some, _ in images]


def _update(training: Training, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    """One step on one batch; its mean loss. A batch for which memory is short is taken in micro-batches, then on."""
    optimizer, recipe = training.optimizer, training.recipe
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * _schedule(progress, LAST_RATE if recipe.averages else 0)
    while True:
        try:
            loss = _accumulate_gradients(training, images, labels)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            optimizer.zero_grad(set_to_none=True)
            if training.micro_batch <= SMALLEST_MICRO_BATCH:
                raise MemoryError(f"not even {training.micro_batch} images at once fit into memory") from error
        training.micro_batch = max(SMALLEST_MICRO_BATCH, math.ceil(min(training.micro_batch, len(labels)) / 2))
        if training.compute.device.type == "cuda":
            torch.cuda.empty_cache()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _accumulate_gradients(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    parts = math.ceil(len(labels) / training.micro_batch)
    mean_loss = torch.zeros((), device=labels.device)
    for some_images, some_labels in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
        features = training.frozen_part(some_images)
        with training.compute.autocast():
            logits = training.trainable_part(features)
            loss = F.cross_entropy(logits, some_labels, label_smoothing=training.recipe.label_smoothing)
        share = len(some_labels) / len(labels)
        (loss * share).backward()
        mean_loss += loss.detach() * share
    return mean_loss


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class of its own for devices, but none for the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _schedule(progress: float, last: float) -> float:
    """The share of the peak learning rate at `progress` (0 to 1): linear warm-up, then half a cosine to `last`."""
    if progress < WARMUP_SHARE:
        return (progress + WARMUP_SHARE / 10) / (WARMUP_SHARE * 1.1)
    fallen = 0.5 * (1 - math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    return 1 - (1 - last) * fallen


class _Batches:
    """Shuffled, augmented batches of the training images. They are gathered on the device if it is a GPU with room for
    all of them, else in memory.
    """

    def __init__(self, train: Split, device: torch.device) -> None:
        self.device = device
        self.keys, self.labels = (torch.from_numpy(array).to(device) for array in (train.keys, train.labels))
        self.train = train
        self.pixels = None
        if device.type == "cuda":
            needed = len(train) * math.prod(train.pixels.shape[1:])
            if needed < torch.cuda.mem_get_info(device)[0] * MOST_OF_GPU:
                self.pixels = torch.from_numpy(train.pixels[train.rows]).to(device)

    def __len__(self) -> int:
        return len(self.train)

    def of_epoch(self, recipe: Recipe, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(pixels, labels) of each batch; a last batch of one image, which BatchNorm cannot take, is left out."""
        shuffle = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=shuffle)
        for chosen in order.split(batch_size):
            if len(chosen) == 1 and len(order) > 1:
                continue
            rows = chosen.to(self.device, non_blocking=True)
            images = self._gathered(chosen) if self.pixels is None else self.pixels[rows]
            yield recipe.augmentation(images, self.keys[rows], recipe.seed, epoch), self.labels[rows]

    def _gathered(self, chosen: Tensor) -> Tensor:
        images = torch.from_numpy(self.train.pixels[self.train.rows[chosen.numpy()]])
        if self.device.type == "cuda":
            images = images.pin_memory()  # only then the copy runs beside the work on the batch before
        return images.to(self.device, non_blocking=True)


def _optimizer(network: Classifier, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum; BatchNorm and biases (all one-dimensional) without weight decay."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, nesterov=True, fused=True)
