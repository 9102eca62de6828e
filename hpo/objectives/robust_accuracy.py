"""Robust accuracy of an image classifier: a trial's parameters become a training run, and what it measured a score."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import torch

from hpo.doors.network import family_of
from hpo.doors.objective import BelowBaseline, Context, Measurement, Objective, Outcome, Split, Trial
from hpo.doors.parameters import Params
from hpo.doors.perturbation import AdaptivePerturbation
from hpo.doors.registry import code_of
from hpo.errors import MachineError
from hpo.robust.attributes import attributes_of
from hpo.robust.shared_sets import SharedSets, lock_file
from hpo.search.kept_files import WEIGHTS_FILE
from hpo.search.sql.attributes import SKIPPED_KEY, SPLIT_KEY
from hpo.study_file.images import BASELINE_WEIGHTS, FITTED_HEAD, ImageSpec, Which
from hpo.study_file.parameters import PARAMETERS
from hpo.study_file.perturbations import ObjectiveSpec, against
from hpo.trial_result import CLEAN
from hpo.vision.adversarial_sets import AgainstItself, against_itself, score
from hpo.vision.classifier import Classifier, Weights, build_network, fingerprint, read_weights
from hpo.vision.data.images import load_images
from hpo.vision.device import Compute, choose_compute
from hpo.vision.inference import Inference
from hpo.vision.made_once import made_once
from hpo.vision.memory import device_errors
from hpo.vision.outcomes import Examined, outcomes_of
from hpo.vision.scoring import Accuracy, EvaluationSet, build_evaluation_set, evaluate
from hpo.vision.training.batches import TrainingImages
from hpo.vision.training.checkpoints import (
    baseline_weights,
    checkpoint_as_bytes,
    checkpoint_from_bytes,
    copied_aside,
    weights_as_bytes,
)
from hpo.vision.training.head import fitted_head
from hpo.vision.training.interpolation import interpolate
from hpo.vision.training.loop import EpochResult, Training, fine_tune
from hpo.vision.training.recipe import Recipe, recipe_of
from hpo.workers.machine import may_have_gpu
from hpo.workers.memory import check_memory

UNFROZEN: Params = {"frozen_layers": 0}


class RobustAccuracy(Objective):
    """Fine-tunes the study's network with a trial's parameters and scores it clean and perturbed."""

    takes_test_sets = True

    def __init__(self, settings: ObjectiveSpec, context: Context) -> None:
        """Loads images and initial weights, so that whatever is wrong with them shows before a trial is claimed. Raises
        DataError, WeightsError, and InputError if this machine has too little memory.
        """
        self.spec: ImageSpec = context.study
        for perturbation in self.spec.all_perturbations:
            _ = perturbation.scored_severity  # raises InputError if it is not installed here
        self.settings = settings
        self.store, self.say = context.store, context.say
        self._unchanging = cache(self._build_evaluation)  # cached methods would keep this object
        self._training_images = cache(self._build_training_images)
        self.compute: Compute = choose_compute(context.threads, self.spec.model.input_size)
        self.pretrained = read_weights(self.spec.model.name, self.spec.model.weights)
        self.images = load_images(self.spec.data, self.spec.model.input_size, self.spec.split_seed)
        if not may_have_gpu():
            check_memory(self.spec, len(self.images.train), 1, context.say)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        model = self.spec.model.name
        members = {p.name: type(p) for p in self.spec.all_perturbations} | {model: family_of(model)}
        codes = {f"code of {name}": code for name, member in members.items() if (code := code_of(member)) is not None}
        return {"images": self.images.fingerprint, "weights": fingerprint(self.pretrained), **codes}

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
        """One measurement an epoch. What is chosen by gradient against the network itself is scored after the last one;
        the baseline leaves what other trials of this study need of it.
        """
        with device_errors(MachineError):  # what is built here is as large whatever the parameters
            plain = baseline_weights(self.store) if trial.params.get("interpolated") == "yes" else {}
            network = self.network(trial.params, self.initial_weights(trial.params), trial.seed)
            training = Training(network, self.recipe(trial), self.compute)
            measured = self._resume(training, trial)
            images, evaluation = self._images(trial), self._evaluation(trial)
        with device_errors(MemoryError):
            for trained in fine_tune(training, images, evaluation):
                result, made, outcomes, is_last = trained, {}, [], trained.epoch == trial.steps
                if is_last and not trained.diverged:
                    result = self._interpolated(training, plain, trained, trial) if plain else trained
                if trial.split == "test" and (is_last or trained.diverged):
                    outcomes = outcomes_of(self._examined(training.averaged, trial, trained.diverged))
                    result = replace(result, accuracies=_of_main(outcomes))
                elif is_last and not trained.diverged:
                    made = self._against_itself(training.averaged, trial)
                result = replace(result, accuracies=self._accuracies(result, training.averaged, made))
                measured.append({name: accuracy.fraction for name, accuracy in result.accuracies.items()})
                yield self._measurement(result, training, trial, measured, outcomes)
        if trial.baseline and self.spec.waits_for_baseline:
            self.store.write(BASELINE_WEIGHTS, weights_as_bytes(training.averaged))
            if not trained.diverged:
                self._shared_sets.leave(made)

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
        with device_errors(MachineError):
            copies = copied_aside(training.tensors())
        return lambda: checkpoint_as_bytes(copies(), header)

    def initial_weights(self, params: Params) -> Weights:
        return self._pretrained_with_head if params["initial_weights"] == "pretrained" else baseline_weights(self.store)

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

        def make() -> Weights:
            network = self.network(UNFROZEN, self.pretrained, self.spec.seed).to(self.compute.device)
            return fitted_head(network, self.images.train, self.compute, self.spec.training.label_smoothing)

        return dict(made_once(self.store, FITTED_HEAD, identity, lock_file(self.spec, "head"), make))

    def network(self, params: Params, weights: Weights, seed: int = 0) -> Classifier:
        """With the units frozen that these parameters say."""
        model = self.spec.model
        frozen, classes = int(params["frozen_layers"]), len(self.images.classes)
        side = str(params.get("frozen_side", PARAMETERS["frozen_side"].good))
        return build_network(model.name, classes, weights, model.input_size, frozen, seed, side)

    def recipe(self, trial: Trial) -> Recipe:
        """What a trial is trained with."""
        return recipe_of(self.spec, trial.params, trial.steps, trial.seed, averages=bool(self.pretrained))

    def _images(self, trial: Trial) -> TrainingImages:
        """The training images, with those perturbed against the baseline if this trial trains on them."""
        which: Which = "train" if trial.split == "tuning" else "learned"
        images = self._training_images(which)
        if trial.params["augmentation_strength"] and not trial.baseline:
            images.add_adversarial(self._shared_sets.read(which))
        return images

    def _build_training_images(self, which: Which) -> TrainingImages:
        return TrainingImages(getattr(self.images, which), self.compute.device)

    def _evaluation(self, trial: Trial) -> EvaluationSet | None:
        """What is scored after every epoch, or after the last one what does not count in the score; nothing of the test
        images. Against the baseline nothing exists before it is complete.
        """
        if trial.split == "test":
            return None
        unchanging = self._unchanging(trial.split)
        adversarial = {} if trial.baseline else self._shared_sets.read(trial.split)
        return unchanging.with_conditions(adversarial)

    def _build_evaluation(self, split: Split) -> EvaluationSet:
        at_once = self.compute.images_scored_at_once(self.spec.model.input_size)
        natural = [p for p in self.settings.perturbations if not isinstance(p, AdaptivePerturbation)]
        built = build_evaluation_set(getattr(self.images, split), natural, self.compute.device, at_once=at_once)
        return replace(built, at_the_end=frozenset(p.name for p in self.settings.perturbations if not p.weight))

    @cached_property
    def _shared_sets(self) -> SharedSets:
        network = partial(self.network, UNFROZEN)
        return SharedSets(self.spec, self.images, self.compute, self.store, self._fingerprints, network, self.say)

    def _against_itself(self, network: Classifier, trial: Trial) -> dict[str, AgainstItself]:
        """What is chosen by gradient against this very network, when its training ends."""
        adaptive = [p for p in self.settings.perturbations if isinstance(p, AdaptivePerturbation)]
        chosen = adaptive if trial.baseline else against("self", adaptive)
        at_once = self.compute.batches_at_once_alone if trial.baseline else 1
        return against_itself(network, chosen, getattr(self.images, trial.split), self.compute, self.say, at_once)

    def _interpolated(self, training: Training, plain: Weights, result: EpochResult, trial: Trial) -> EpochResult:
        """The share is chosen on tuning images, whichever score the trial."""
        tuning = self._unchanging("tuning").with_conditions(self._shared_sets.read("tuning"))
        own = result.accuracies or evaluate(Inference(training.averaged, self.compute), tuning)
        images, build = self._images(trial), partial(self.network, UNFROZEN)
        share, found = interpolate(training, own, plain, images, build, tuning, self.settings.score)
        return replace(result, accuracies=found, interpolated_share=share)

    def _examined(self, network: Classifier, trial: Trial, diverged: bool) -> Examined:
        chosen_before = self._shared_sets.read("test")
        families, sets = self.settings.perturbations, trial.test_sets
        return Examined(
            network, self.compute, self.images, families, chosen_before, trial.seed, sets, diverged, self.say
        )

    def _accuracies(
        self, result: EpochResult, network: Classifier, made: Mapping[str, AgainstItself]
    ) -> dict[str, Accuracy]:
        """By condition, in the order of the study file."""
        at_once = self.compute.images_scored_at_once(self.spec.model.input_size)
        found = result.accuracies | (score(network, made, self.compute, at_once) if made else {})
        if not result.accuracies:
            return {}
        names = (CLEAN, *(perturbation.name for perturbation in self.settings.perturbations))
        return {name: found[name] for name in names if name in found}

    def _measurement(
        self,
        result: EpochResult,
        training: Training,
        trial: Trial,
        measured: Sequence[Mapping[str, float]],
        outcomes: Sequence[Outcome],
    ) -> Measurement:
        """measured: the accuracies after each epoch so far, this one's last; none while a trial that is scored on test
        images is trained.
        """
        parts = measured[-1]
        is_scored, on_test_images = bool(parts), trial.split == "test"
        mean = self.settings.mean_perturbed(parts) if is_scored else None
        images, drop = len(getattr(self.images, trial.split)), self.settings.max_clean_drop
        is_chosen_before = not trial.baseline and is_scored
        fingerprints = self._shared_sets.digests(trial.split) if is_chosen_before else {}
        return Measurement(
            step=result.epoch,
            score=self.settings.score(parts) if is_scored else math.nan,
            parts=parts,
            checkpoint=None if result.diverged else partial(self._take_checkpoint, training, list(measured)),
            constraints={} if drop is None or on_test_images else {"clean_drop": BelowBaseline(CLEAN, drop)},
            attributes=attributes_of(result, training, images, mean, fingerprints),
            keep=lambda: self._files(training, trial, measured),
            outcomes=outcomes,
        )

    def _files(self, training: Training, trial: Trial, measured: Sequence[Mapping[str, float]]) -> dict[str, bytes]:
        """The training curve, some images with what the network says of them, and its weights."""
        from hpo.vision.pictures import draw_curve, draw_predictions

        files = {WEIGHTS_FILE: weights_as_bytes(training.averaged)}
        if (evaluation := self._evaluation(trial)) is None:
            return files
        return files | {
            "training-curve.png": draw_curve(measured),
            "predictions.png": draw_predictions(training.averaged, evaluation, self.images.names, self.compute),
        }


def _of_main(outcomes: Sequence[Outcome]) -> dict[str, Accuracy]:
    return {
        each.condition: Accuracy(int(each.right.sum()), len(each.right))
        for each in outcomes
        if each.main and each.right is not None
    }
