"""fine_tune(): a generator that trains a network and yields what it measured after each epoch.

It knows nothing of trials: its caller reports, prunes and writes checkpoints. Shuffling and augmentation depend only on
seed, epoch and image, so that a training resumed from a checkpoint gives the same results as an uninterrupted one.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor, nn

from hpo.vision.attacks import Attacked
from hpo.vision.classifier import Classifier
from hpo.vision.device import Compute, seconds_between
from hpo.vision.inference import Inference
from hpo.vision.memory import Portions
from hpo.vision.scoring import Accuracy, EvaluationSet, embedded, evaluate
from hpo.vision.training.averaging import (
    BATCH_NORM_IMAGES,
    IMAGES_BETWEEN_AVERAGES,
    Average,
    measure_batch_norms,
)
from hpo.vision.training.batches import Batch, Batches, TrainingImages
from hpo.vision.training.optimizers import OPTIMIZERS
from hpo.vision.training.recipe import Recipe
from hpo.vision.training.step import CudaRecorder, Recorder, Runner, Step
from hpo.vision.winograd import replace_convolutions

WARMUP_SHARE = 0.1
"""Fraction of all updates in which the learning rate rises linearly; afterwards it falls as half a cosine."""
LAST_RATE = 0.3
"""Final learning rate as a fraction of the peak if weights are averaged, which replaces decay to 0; else it is 0."""


@dataclass(frozen=True)
class EpochResult:
    """Results of an epoch. epoch: from 1; loss: mean of the training images; accuracies: by condition, clean first;
    interpolated_share: if they are those of weights mixed with others at the end, the share of this training's.
    """

    epoch: int
    loss: float
    accuracies: dict[str, Accuracy]
    images_per_second: float
    seconds: float
    interpolated_share: float | None = None

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)


class Training:
    """The state of a training, which is what a checkpoint contains.

    averaged: the network that is scored and kept: one with the average of the weights so far, or `network` itself.
    """

    def __init__(self, network: Classifier, recipe: Recipe, compute: Compute, recorder: Recorder | None = None) -> None:
        self.network = network.to(compute.device)
        if compute.gains_from_winograd:
            replace_convolutions(self.network)
        self.recipe = recipe
        self.compute = compute
        self.frozen_part = Inference(network.frozen_part, compute)
        trainable_part = network.trainable_part
        self.averaged = deepcopy(self.network).eval().requires_grad_(False) if recipe.averages else self.network
        self.average = Average(self.averaged.trainable_part, trainable_part) if recipe.averages else None
        self.portions = Portions(recipe.batch_size, compute.images_at_once(network.normalise.size, recipe.batch_size))
        trainable = (parameter for parameter in network.parameters() if parameter.requires_grad)
        self.optimizer = OPTIMIZERS[recipe.optimizer](trainable, recipe.weight_decay, network.undecayed)
        step = Step(
            trainable_part,
            self.optimizer,
            compute,
            recipe.batch_size,
            recipe.label_smoothing,
            self.portions,
            recipe.consistency,
            recipe.splits_statistics,
            cast(nn.Module, torch.compile(trainable_part, dynamic=False)) if recipe.compile else None,
        )
        if recorder is None and compute.device.type == "cuda":
            recorder = CudaRecorder()
        self.runner = Runner(step, recorder)
        self.epochs_done = 0

    @property
    def was_split(self) -> bool:
        return self.portions.micro_batch < self.recipe.batch_size

    def tensors(self) -> dict[str, Tensor]:
        """Weights, BatchNorm statistics, the optimizer's state and averages, by name."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.recipe.averages:
            tensors |= {
                f"averaged.{name}": tensor for name, tensor in self.averaged.trainable_part.state_dict().items()
            }
        tensors |= self._optimizer_state()
        counts = {
            "epochs_done": self.epochs_done,
            "averages_done": self.average.count if self.average else 0,
            "micro_batch": self.portions.micro_batch,
            "prepared": self.portions.prepared,
        }
        return tensors | {name: torch.tensor(value) for name, value in counts.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the state that `tensors()` of a training with the same recipe returned."""
        tensors = {
            name.replace(".resnet.", ".module.", 1): tensor for name, tensor in tensors.items()
        }  # as older checkpoints name it
        self.network.load_state_dict(_below("network.", tensors))
        if self.average:
            self.averaged.trainable_part.load_state_dict(_below("averaged.", tensors))
            self.average.count = int(tensors["averages_done"])
        for name, tensor in self._optimizer_state().items():
            tensor.copy_(tensors[name])
        self.epochs_done = int(tensors["epochs_done"])
        self.portions.micro_batch = int(tensors["micro_batch"])
        self.portions.prepared = int(tensors.get("prepared", self.portions.prepared))  # older checkpoints have none

    def _optimizer_state(self) -> dict[str, Tensor]:
        named = [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        kinds = self.optimizer.state.items()
        return {f"{kind}.{name}": kept[parameter] for kind, kept in kinds for name, parameter in named}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fine_tune(training: Training, images: TrainingImages, tuning: EvaluationSet | None) -> Iterator[EpochResult]:
    """Trains in place and yields a result after each epoch; ends early if the loss is no longer finite. tuning: what is
    scored after each epoch, if anything.

    Waits for a GPU once per epoch, to read its results. Raises MemoryError if not even SMALLEST_PORTION images fit into
    memory.
    """
    recipe, compute = training.recipe, training.compute
    victim = Attacked(training.network) if recipe.augmentation.is_against_itself else None
    batches = Batches(images, recipe.augmentation, training.frozen_part, recipe.seed, victim, recipe.has_twins)
    features = embedded(tuning, training.frozen_part) if tuning else None
    scored_on = features or tuning
    some_features = features_for_batch_norms(training, images, training.frozen_part) if recipe.averages else []
    scored = Inference(training.averaged.trainable_part if features else training.averaged, compute)
    upcoming = _begun(batches, training.epochs_done + 1, training)
    try:
        for epoch in range(training.epochs_done + 1, recipe.epochs + 1):
            started, first = time.perf_counter(), compute.mark()
            _train_epoch(training, upcoming, epoch, updates=math.ceil(len(images) / recipe.batch_size))
            if epoch < recipe.epochs:
                upcoming = _begun(batches, epoch + 1, training)
            if recipe.averages:
                measure_batch_norms(training.averaged.trainable_part, some_features, compute)
            last = compute.mark()
            scored.refill()
            accuracies = {}
            if scored_on:
                accuracies = evaluate(scored, scored_on if epoch == recipe.epochs else scored_on.of_every_epoch)
            loss = float(training.runner.step.loss_sum) / len(images)
            training.epochs_done = epoch
            yield EpochResult(
                epoch=epoch,
                loss=loss,
                accuracies=accuracies,
                images_per_second=len(images) / seconds_between(first, last),
                seconds=time.perf_counter() - started,
            )
            if not math.isfinite(loss):
                return
    finally:
        training.runner.forget()


def _begun(batches: Batches, epoch: int, training: Training) -> Iterator[Batch]:
    """The batches of an epoch, the first already being prepared: a GPU does so while the previous results are read."""
    of_epoch = batches.of_epoch(epoch, training.recipe.batch_size, training.portions)
    return chain(list(islice(of_epoch, 1)), of_epoch)


def _train_epoch(training: Training, batches: Iterable[Batch], epoch: int, updates: int) -> None:
    recipe, average, step = training.recipe, training.average, training.runner.step
    averaged_every = max(1, IMAGES_BETWEEN_AVERAGES // recipe.batch_size)
    step.loss_sum.zero_()
    training.network.train()
    for number, (features, labels) in enumerate(batches):
        progress = (epoch - 1 + number / updates) / recipe.epochs
        step.rate.fill_(recipe.learning_rate * _schedule(progress, LAST_RATE if recipe.averages else 0))
        training.runner.run(features, labels)
        if average and ((number + 1) % averaged_every == 0 or number + 1 == updates):
            average.take()


def features_for_batch_norms(training: Training, images: TrainingImages, frozen_part: Inference) -> list[Tensor]:
    """Features of BATCH_NORM_IMAGES augmented images, in batches as large as for scoring, to measure BatchNorm's
    statistics for averaged weights; of unperturbed images, if those have statistics of their own. Cloned, since slices
    would keep the whole batch alive. None is perturbed against the network itself: a resumed training would take those
    of another time.
    """
    recipe = training.recipe
    augmentation = replace(recipe.augmentation, strength=0.0) if recipe.splits_statistics else recipe.augmentation
    batches = Batches(images, augmentation.without_itself, frozen_part, recipe.seed)
    size = training.network.normalise.size
    at_once = min(BATCH_NORM_IMAGES, training.compute.images_scored_at_once(size))
    prepared = batches.of_epoch(1, at_once, training.portions)
    return [features.clone() for features, _ in islice(prepared, BATCH_NORM_IMAGES // at_once)]


def _schedule(progress: float, last: float) -> float:
    """Fraction of the peak learning rate at `progress` (0 to 1): linear warm-up, then half a cosine down to `last`."""
    if progress < WARMUP_SHARE:
        return (progress + WARMUP_SHARE / 10) / (WARMUP_SHARE * 1.1)
    fallen = 0.5 * (1 - math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    return 1 - (1 - last) * fallen
