"""Robust accuracy of an image classifier: a trial's parameters become a training run, and what it measured a score."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from hpo.doors.network import family_of
from hpo.doors.objective import BelowBaseline, Context, Measurement, Objective, Split, Trial
from hpo.doors.parameters import Params
from hpo.doors.registry import code_of
from hpo.errors import DataError, MachineError, WeightsError
from hpo.search.kept_files import WEIGHTS_FILE
from hpo.search.sql.attributes import SKIPPED_KEY, SPLIT_KEY
from hpo.study_file.images import ImageSpec, ObjectiveSpec
from hpo.study_file.parameters import PARAMETERS
from hpo.trial_result import CLEAN
from hpo.vision.classifier import Classifier, Weights, build_network, fingerprint, read_weights
from hpo.vision.data.disk import data_root, locked
from hpo.vision.data.images import load_images
from hpo.vision.device import Compute, choose_compute
from hpo.vision.memory import is_device_failure, is_out_of_memory
from hpo.vision.scoring import EvaluationSet, build_evaluation_set
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.batches import TrainingImages
from hpo.vision.training.checkpoints import (
    checkpoint_as_bytes,
    checkpoint_from_bytes,
    copied_aside,
    weights_as_bytes,
    weights_from_bytes,
)
from hpo.vision.training.head import fitted_head
from hpo.vision.training.loop import EpochResult, Recipe, Training, fine_tune
from hpo.workers.machine import may_have_gpu
from hpo.workers.memory import check_memory

BASELINE_WEIGHTS = "baseline.safetensors"
FITTED_HEAD = "fitted-head.safetensors"


class RobustAccuracy(Objective):
    """Fine-tunes the study's network with a trial's parameters and scores it clean and perturbed."""

    def __init__(self, settings: ObjectiveSpec, context: Context) -> None:
        """Loads images and initial weights, so that whatever is wrong with them shows before a trial is claimed. Raises
        DataError, WeightsError, and InputError if this machine has too little memory.
        """
        for perturbation in settings.perturbations:
            _ = perturbation.scored_severity  # raises InputError if it is not installed here
        self.spec: ImageSpec = context.study
        self.settings = settings
        self.store = context.store
        self.compute: Compute = choose_compute(context.threads, self.spec.model.input_size)
        self.pretrained = read_weights(self.spec.model.name, self.spec.model.weights)
        self.images = load_images(self.spec.data, self.spec.model.input_size, self.spec.split_seed)
        if not may_have_gpu():
            check_memory(self.spec, len(self.images.train), 1, context.say)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        model = self.spec.model.name
        members = {p.name: type(p) for p in self.settings.perturbations} | {model: family_of(model)}
        codes = {name: code_of(member) for name, member in members.items()}
        of_packages = {f"code of {name}": code for name, code in codes.items() if code is not None}
        return {"images": self.images.fingerprint, "weights": fingerprint(self.pretrained), **of_packages}

    def fingerprints(self) -> Mapping[str, str]:
        """Of the decoded images, the initial weights, and the code of installed perturbations and networks."""
        return self._fingerprints

    def about(self) -> Mapping[str, Any]:
        """How many images train, tune and test, and the names of those that were left out."""
        images = self.images
        counts = {"train": len(images.train), "tuning": len(images.tuning), "test": len(images.test)}
        kept: dict[str, Any] = {SPLIT_KEY: counts | {"classes": len(images.classes)}}
        return kept | ({SKIPPED_KEY: list(images.skipped)} if images.skipped else {})

    def check(self) -> None:
        """Raises WeightsError if the weights are not this network's, InputError if more layers are to be frozen than it
        has.
        """
        most = max(value for value in self.spec.search.values("frozen_layers") if isinstance(value, int))
        self.network({"frozen_layers": most}, self.pretrained)

    def checkpoint_identity(self) -> Mapping[str, Any]:
        """Machines that compute in another precision go another way."""
        return {"bf16": self.compute.bf16}

    def run(self, trial: Trial) -> Iterator[Measurement]:
        """One measurement an epoch. The baseline's weights are kept if trials of this study may start from them."""
        with _device_errors(MachineError):  # what is built here is as large whatever the parameters
            network = self.network(trial.params, self.initial_weights(trial.params), trial.seed)
            training = Training(network, self.recipe(trial), self.compute)
            measured = self._resume(training, trial)
        with _device_errors(MemoryError):
            for result in fine_tune(training, self.training_images, self._evaluation(trial.split)):
                measured.append({name: accuracy.fraction for name, accuracy in result.accuracies.items()})
                yield self._measurement(result, training, trial, measured)
        if trial.baseline and self.spec.waits_for_baseline:
            self.store.write(BASELINE_WEIGHTS, weights_as_bytes(training.averaged))

    def _resume(self, training: Training, trial: Trial) -> list[dict[str, float]]:
        """Restores a checkpoint; the accuracies after each epoch until then."""
        checkpoint = checkpoint_from_bytes(trial.checkpoint) if trial.checkpoint else None
        if checkpoint is None:
            return []
        training.restore(checkpoint.tensors)
        measured: list[dict[str, float]] = json.loads(checkpoint.header["measured"])
        return measured

    def _take_checkpoint(self, training: Training, measured: Sequence[Mapping[str, float]]) -> Callable[[], bytes]:
        header = {"measured": json.dumps(list(measured))}
        with _device_errors(MachineError):
            copies = copied_aside(training.tensors())
        return lambda: checkpoint_as_bytes(copies(), header)

    def initial_weights(self, params: Params) -> Weights:
        if params["initial_weights"] == "pretrained":
            return self._pretrained_with_head
        content = self.store.read(BASELINE_WEIGHTS)
        if content is None:
            raise WeightsError(
                f"{self.store.location}/{BASELINE_WEIGHTS} (what the baseline learned) cannot be found from this "
                "machine; set HPO_ARTIFACTS to a folder or bucket that all workers share"
            )
        return weights_from_bytes(content)

    @cached_property
    def _pretrained_with_head(self) -> Weights:
        """Random weights keep their random head: there is nothing to fit one to."""
        return self.pretrained | self.fitted_head() if self.pretrained else {}

    def fitted_head(self) -> Weights:
        """The head that trainings start with. It takes seconds to fit, so it is kept for workers to come; not for other
        kinds of machines, whose own differ in the last digits. Where it cannot be kept, each fits its own.
        """
        kind = {"torch": torch.__version__, "device": self.compute.description, "threads": torch.get_num_threads()}
        about = self.spec.identity() | self._fingerprints | kind | dict(self.checkpoint_identity())
        identity = json.dumps(about | {"cpu": torch.backends.cpu.get_cpu_capability()}, sort_keys=True)
        with _one_on_this_machine(data_root(self.spec.data) / "images" / ".head.lock"):
            content = None
            with contextlib.suppress(OSError):
                content = self.store.read(FITTED_HEAD)
            kept = checkpoint_from_bytes(content) if content else None
            if kept is not None and kept.header.get("identity") == identity:
                return kept.tensors
            network = self.network({"frozen_layers": 0}, self.pretrained, self.spec.seed).to(self.compute.device)
            head = fitted_head(network, self.images.train, self.compute, self.spec.training.label_smoothing)
            with contextlib.suppress(OSError):
                self.store.write(FITTED_HEAD, checkpoint_as_bytes(head, {"identity": identity}))
            return head

    def network(self, params: Params, weights: Weights, seed: int = 0) -> Classifier:
        """With the units frozen that these parameters say."""
        model = self.spec.model
        frozen, classes = int(params["frozen_layers"]), len(self.images.classes)
        side = str(params.get("frozen_side", PARAMETERS["frozen_side"].good))
        return build_network(model.name, classes, weights, model.input_size, frozen, seed, side)

    def recipe(self, trial: Trial) -> Recipe:
        """What a trial is trained with."""
        training, params = self.spec.training, trial.params
        return Recipe(
            epochs=trial.steps,
            batch_size=int(params["batch_size"]),
            learning_rate=float(params["learning_rate"]),
            weight_decay=float(params.get("weight_decay", training.weight_decay)),
            label_smoothing=float(params.get("label_smoothing", training.label_smoothing)),
            optimizer=str(params.get("optimizer", PARAMETERS["optimizer"].good)),
            compile=training.compile,
            augmentation=Augmentation(
                float(params["augmentation_strength"]),
                self.settings.perturbations,
                training.horizontal_flip,
                float(params.get("perturbed_share", PARAMETERS["perturbed_share"].good)),
            ),
            seed=trial.seed,
            averages=bool(self.pretrained),
        )

    @cached_property
    def training_images(self) -> TrainingImages:
        return TrainingImages(self.images.train, self.compute.device)

    def _evaluation(self, split: Split) -> EvaluationSet:
        return self.tuning if split == "tuning" else self.test

    @cached_property
    def tuning(self) -> EvaluationSet:
        return self._build_evaluation("tuning")

    @cached_property
    def test(self) -> EvaluationSet:
        return self._build_evaluation("test")

    def _build_evaluation(self, split: Split) -> EvaluationSet:
        at_once = self.compute.images_scored_at_once(self.spec.model.input_size)
        images = self.images.tuning if split == "tuning" else self.images.test
        return build_evaluation_set(images, self.settings.perturbations, self.compute.device, at_once=at_once)

    def _measurement(
        self, result: EpochResult, training: Training, trial: Trial, measured: Sequence[Mapping[str, float]]
    ) -> Measurement:
        """measured: the accuracies after each epoch so far, this one's last."""
        settings, parts = self.settings, measured[-1]
        weighted = sum(p.weight * parts[p.name] for p in settings.perturbations)
        drop = settings.max_clean_drop
        return Measurement(
            step=result.epoch,
            score=settings.clean * parts[CLEAN] + weighted,
            parts=parts,
            checkpoint=None if result.diverged else partial(self._take_checkpoint, training, list(measured)),
            constraints={} if drop is None else {"clean_drop": BelowBaseline(CLEAN, drop)},
            attributes={
                "mean_perturbed_accuracy": weighted / sum(p.weight for p in settings.perturbations),
                "images": len(self._evaluation(trial.split).labels),
                "diverged": result.diverged,
                "images_per_second": round(result.images_per_second, 1),
                "device": self.compute.description,
                "made_by": {
                    "device": self.compute.description,
                    "threads": torch.get_num_threads(),
                    "steps": training.runner.how,
                },
                **({"micro_batch_size": training.portions.micro_batch} if training.was_split else {}),
            },
            keep=lambda: self._files(training, trial.split, measured),
        )

    def _files(self, training: Training, split: Split, measured: Sequence[Mapping[str, float]]) -> dict[str, bytes]:
        """The training curve, some images with what the network says of them, and its weights."""
        from hpo.vision.pictures import draw_curve, draw_predictions

        evaluation = self._evaluation(split)
        return {
            "training-curve.png": draw_curve(measured),
            "predictions.png": draw_predictions(training.averaged, evaluation, self.images.classes, self.compute),
            WEIGHTS_FILE: weights_as_bytes(training.averaged),
        }


@contextlib.contextmanager
def _device_errors(out_of_memory: type[Exception]) -> Iterator[None]:
    """Raises `out_of_memory` for that, MachineError where a device has failed otherwise."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or ["no more memory"])[0]
        if is_out_of_memory(error):
            raise out_of_memory(reason) from error
        if is_device_failure(error):
            raise MachineError(f"this machine's device failed: {reason}") from error
        raise


@contextlib.contextmanager
def _one_on_this_machine(file: Path) -> Iterator[None]:
    """Others wait; not where files cannot be locked: then each does the same for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(DataError):
            stack.enter_context(locked(file))
        yield
