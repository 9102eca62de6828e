"""Where the two worlds meet: a trial's parameters become a training run, and what it measured a score."""

import contextlib
import errno
import json
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import hpo
from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Picture, Trial
from hpo.doors.parameters import PARAMETERS, Params
from hpo.errors import DataError, MachineError, WeightsError
from hpo.objectives.provenance import made_by
from hpo.search.checkpoint_writer import CheckpointWriter
from hpo.search.sql.attributes import ARTIFACTS_KEY, SKIPPED_KEY, SPLIT_KEY
from hpo.search.study_files import location_in_full
from hpo.study_file.spec import CLEAN, Spec
from hpo.vision.classifier import Classifier, Weights, build_network, fingerprint, read_weights
from hpo.vision.data.disk import data_root, locked
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.device import Compute, choose_compute
from hpo.vision.memory import is_device_failure, is_out_of_memory
from hpo.vision.scoring import build_evaluation_set
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


class RobustAccuracy:
    """Fine-tunes the study's network with a trial's parameters and scores it clean and perturbed.

    Set up once a worker: images and initial weights are loaded here, so that whatever is wrong with them shows before
    a trial is claimed. Raises DataError, WeightsError.
    """

    def __init__(self, spec: Spec, threads: int | None, artifacts: Artifacts) -> None:
        artifacts.check()
        for perturbation in spec.objective.perturbations:
            _ = perturbation.scored_severity  # raises InputError if it is not installed here
        self.spec = spec
        self.artifacts = artifacts
        self.compute: Compute = choose_compute(threads)
        self.perturbations = spec.objective.perturbations
        self.pretrained = read_weights(spec.model.name, spec.model.weights)
        self.images = load_images(spec.data, spec.model.input_size, spec.seed)
        self.fingerprints = {"images": self.images.fingerprint, "weights": fingerprint(self.pretrained)}
        self.about = _about(self.images, artifacts)
        self.baseline_weights = f"{spec.folder_name}/baseline.safetensors"

    def check(self) -> None:
        """Raises WeightsError if the weights are not this network's."""
        self._network({"frozen_layers": 0}, self.pretrained)

    def run(self, trial: Trial) -> Generator[Measurement]:
        """One measurement an epoch, and checkpoints between them that the trial goes on from.

        The baseline's weights are kept if trials of this study may start from them.
        """
        with _device_errors(MachineError):  # what is built here is as large whatever the parameters
            network = self._network(trial.params, self._initial_weights(trial.params))
            training = Training(network, self._recipe(trial.params), self.compute)
            measured = self._resume(training, trial)
        yield from measured
        with _device_errors(MemoryError):
            yield from self._go_on(training, trial, measured)
        if trial.baseline and self.spec.search.may_start_from_baseline:
            self._keep(self.baseline_weights, weights_as_bytes(training.averaged))

    def _go_on(self, training: Training, trial: Trial, measured: list[Measurement]) -> Generator[Measurement]:
        resumed_after = len(measured)
        writer = CheckpointWriter()
        try:
            for result in fine_tune(training, self._training_images, self._tuning):
                measured.append(self._measurement(result, training, resumed_after, measured))
                if result.epoch < self.spec.training.epochs and not result.diverged:
                    writer.offer(partial(self._take_checkpoint, training, trial, measured))
                yield measured[-1]
                writer.move_on()
        except GeneratorExit:  # the worker leaves the trial, and another may go on with it
            writer.flush()
            raise
        finally:
            writer.close()

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes the checkpoints of these trials."""
        for number in numbers:
            self.artifacts.remove(self._checkpoint_name(number))

    def _keep(self, name: str, content: bytes) -> None:
        """For others to go on with. Raises OSError."""
        try:
            self.artifacts.write(name, content)
        except OSError as error:
            reason = f"HPO_ARTIFACTS: {self.artifacts.location}/{name} cannot be written: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, reason) from error

    def _checkpoint_name(self, number: int) -> str:
        return f"{self.spec.folder_name}/trial-{number}.checkpoint.safetensors"

    def _identity(self) -> dict[str, Any]:
        """What must be equal for what lies in the artifact store to be this study's: another of the same name may have
        left its own.
        """
        spec = self.spec.model_dump(mode="json", include={"seed", "data", "model", "training", "objective"})
        spec["model"].pop("weights")
        if not spec["training"]["compile"]:
            spec["training"].pop("compile")  # checkpoints of before it was there know nothing of it
        for where in ("name", "root", "archive"):
            spec["data"].pop(where)
        return spec | self.fingerprints | {"bf16": self.compute.bf16, "protocol": hpo.PROTOCOL}

    def _take_checkpoint(self, training: Training, trial: Trial, measured: Sequence[Measurement]) -> Callable[[], None]:
        kept = [{"step": m.step, "score": m.score, "parts": dict(m.parts)} for m in measured]
        header = {"identity": json.dumps(self._identity() | {"params": trial.params}), "measured": json.dumps(kept)}
        copies = copied_aside(training.tensors())

        def write() -> None:
            self._keep(self._checkpoint_name(trial.number), checkpoint_as_bytes(copies(), header))
            for number in set(trial.continues) - {trial.number}:  # this one takes the place of those before it
                self.artifacts.remove(self._checkpoint_name(number))

        return write

    def _resume(self, training: Training, trial: Trial) -> list[Measurement]:
        """Restores the latest checkpoint of the trials that this one continues; what had been measured until then."""
        identity = json.dumps(self._identity() | {"params": trial.params})
        for number in trial.continues:
            content = self.artifacts.read(self._checkpoint_name(number))
            checkpoint = checkpoint_from_bytes(content) if content else None
            if checkpoint and checkpoint.header.get("identity") == identity:
                training.restore(checkpoint.tensors)
                kept = json.loads(checkpoint.header["measured"])
                return [Measurement(**entry, attributes={}, resumed=True) for entry in kept]
        return []

    def _initial_weights(self, params: Params) -> Weights:
        if params["initial_weights"] == "pretrained":
            return self._pretrained_with_head
        content = self.artifacts.read(self.baseline_weights)
        if content is None:
            raise WeightsError(
                f"{self.artifacts.location}/{self.baseline_weights} (what the baseline learned) cannot be found from "
                "this machine; set HPO_ARTIFACTS to a folder or bucket that all workers share"
            )
        return weights_from_bytes(content)

    @cached_property
    def _pretrained_with_head(self) -> Weights:
        """Random weights keep their random head: there is nothing to fit one to."""
        return self.pretrained | self._fitted_head() if self.pretrained else {}

    def _fitted_head(self) -> Weights:
        """Takes seconds, so it is kept for workers to come; not for other kinds of machines, whose own differ in the
        last digits. Where it cannot be kept, each fits its own.
        """
        name = f"{self.spec.folder_name}/fitted-head.safetensors"
        kind = {key: self._made_by[key] for key in ("torch", "device", "threads")}
        identity = json.dumps(self._identity() | kind | {"cpu": torch.backends.cpu.get_cpu_capability()})
        with _one_on_this_machine(data_root(self.spec.data) / "images" / ".head.lock"):
            content = None
            with contextlib.suppress(OSError):
                content = self.artifacts.read(name)
            kept = checkpoint_from_bytes(content) if content else None
            if kept is not None and kept.header.get("identity") == identity:
                return kept.tensors
            network = self._network({"frozen_layers": 0}, self.pretrained).to(self.compute.device)
            head = fitted_head(network, self.images.train, self.compute, self.spec.training.label_smoothing)
            with contextlib.suppress(OSError):
                self.artifacts.write(name, checkpoint_as_bytes(head, {"identity": identity}))
            return head

    def _network(self, params: Params, weights: Weights) -> Classifier:
        model = self.spec.model
        frozen, classes = int(params["frozen_layers"]), len(self.images.classes)
        side = str(params.get("frozen_side", "input"))
        return build_network(model.name, classes, weights, model.input_size, frozen, self.spec.seed, side)

    def _recipe(self, params: Params) -> Recipe:
        training = self.spec.training
        return Recipe(
            epochs=training.epochs,
            batch_size=int(params["batch_size"]),
            learning_rate=float(params["learning_rate"]),
            weight_decay=float(params.get("weight_decay", training.weight_decay)),
            label_smoothing=float(params.get("label_smoothing", training.label_smoothing)),
            optimizer=str(params.get("optimizer", "sgd")),
            compile=training.compile,
            augmentation=Augmentation(
                float(params["augmentation_strength"]),
                self.perturbations,
                training.horizontal_flip,
                float(params.get("perturbed_share", PARAMETERS["perturbed_share"].good)),
            ),
            seed=self.spec.seed,
            averages=bool(self.pretrained),
        )

    @cached_property
    def _training_images(self) -> TrainingImages:
        return TrainingImages(self.images.train, self.compute.device)

    @cached_property
    def _tuning(self) -> Any:
        at_once = self.compute.images_scored_at_once(self.spec.model.input_size)
        return build_evaluation_set(self.images.tuning, self.perturbations, self.compute.device, at_once=at_once)

    def _measurement(
        self, result: EpochResult, training: Training, resumed_after: int, measured: Sequence[Measurement]
    ) -> Measurement:
        """measured: all measurements of this trial, this one among them when pictures are asked for."""
        objective = self.spec.objective
        parts = {name: accuracy.fraction for name, accuracy in result.accuracies.items()}
        perturbed: dict[str, float] = {p.name: parts[p.name] for p in objective.perturbations}
        weighted = sum(p.weight * parts[p.name] for p in objective.perturbations)
        return Measurement(
            step=result.epoch,
            score=objective.clean * parts[CLEAN] + weighted,
            parts=parts,
            attributes={
                "clean_accuracy": parts[CLEAN],
                "perturbed_accuracy": perturbed,
                **perturbed,  # once more by name, since optuna-dashboard plots numbers only
                "mean_perturbed_accuracy": weighted / sum(p.weight for p in objective.perturbations),
                "correct": {name: accuracy.correct for name, accuracy in result.accuracies.items()},
                "images": len(self.images.tuning),
                "diverged": result.diverged,
                "images_per_second": round(result.images_per_second, 1),
                "host": self._made_by["host"],
                "device": self._made_by["device"],
                "made_by": self._made_by | {"steps": training.runner.how},
                **({"resumed_after_epoch": resumed_after} if resumed_after else {}),
                **({"micro_batch_size": training.portions.micro_batch} if training.was_split else {}),
            },
            illustrate=lambda: self._illustrate(training, [m.parts for m in measured]),
        )

    def _illustrate(self, training: Training, by_epoch: Sequence[Mapping[str, float]]) -> list[Picture]:
        """The training curve, and some tuning images with what the network says of them."""
        from hpo.vision.pictures import draw_curve, draw_predictions

        drawn = {
            "training-curve.png": draw_curve(by_epoch),
            "predictions.png": draw_predictions(training.averaged, self._tuning, self.images.classes, self.compute),
        }
        pictures = [Picture(str(uuid.uuid4()), filename, "image/png") for filename in drawn]
        for picture in pictures:
            self.artifacts.write(picture.artifact_id, drawn[picture.filename])
        return pictures

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        return made_by(self.spec.seed, self.compute.description, self.fingerprints)


def _about(images: ImageSet, artifacts: Artifacts) -> dict[str, Any]:
    """What is kept with the study for those who look at it."""
    split = {"train": len(images.train), "tuning": len(images.tuning), "test": len(images.test)}
    kept: dict[str, Any] = {SPLIT_KEY: split | {"classes": len(images.classes)}}
    kept[ARTIFACTS_KEY] = location_in_full(artifacts.location)
    return kept | ({SKIPPED_KEY: list(images.skipped)} if images.skipped else {})


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
