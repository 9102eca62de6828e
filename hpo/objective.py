"""Where the two worlds meet: a trial's parameters become a training run, and what it measured a score."""

import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import torchvision

import hpo
from hpo.errors import WeightsError
from hpo.parameters import Params
from hpo.search.worker import Measurement
from hpo.spec import Spec
from hpo.vision.augmentation import Augmentation
from hpo.vision.device import Compute, choose_compute
from hpo.vision.evaluation import CLEAN, build_evaluation_set
from hpo.vision.images import load_images
from hpo.vision.network import Classifier, Weights, build_network, fingerprint, read_weights, save_weights
from hpo.vision.training import EpochResult, Recipe, fine_tune


class RobustAccuracy:
    """Fine-tunes the study's network with a trial's parameters and scores it clean and perturbed.

    Set up once a worker: images, perturbed tuning images and initial weights are loaded here, so that whatever is
    wrong with them shows before a trial is claimed. Raises DataError, WeightsError.
    """

    def __init__(self, spec: Spec, threads: int | None, artifacts: Path) -> None:
        self.spec = spec
        self.compute: Compute = choose_compute(threads)
        self.perturbations = [(p.name, p.severity) for p in spec.objective.perturbations]
        self.images = load_images(spec.data, spec.model.input_size, spec.seed)
        self.pretrained = read_weights(spec.model.name, spec.model.weights)
        self._network({"frozen_layers": 0}, self.pretrained)  # do the weights fit?
        self.fingerprints = {"images": self.images.fingerprint, "weights": fingerprint(self.pretrained)}
        self.baseline_file = artifacts / spec.folder_name / "baseline.safetensors"

    def run(self, params: Params, baseline: bool) -> Iterator[Measurement]:
        """One measurement an epoch. The baseline's weights are kept if trials of this study may start from them."""
        network = self._network(params, self._initial_weights(params))
        results = fine_tune(network, self.images.train, self._tuning, self._recipe(params), self.compute)
        for result in results:
            yield self._measurement(result)
        if baseline and self.spec.search.may_start_from_baseline:
            save_weights(network, self.baseline_file)

    def _initial_weights(self, params: Params) -> Weights:
        if params["initial_weights"] == "pretrained":
            return self.pretrained
        if not self.baseline_file.exists():
            raise WeightsError(
                f"{self.baseline_file} (the baseline's weights) is not on this machine; "
                "set HPO_ARTIFACTS to a folder that all workers share"
            )
        return read_weights(self.spec.model.name, str(self.baseline_file))

    def _network(self, params: Params, weights: Weights) -> Classifier:
        model = self.spec.model
        frozen, classes = int(params["frozen_layers"]), len(self.images.classes)
        return build_network(model.name, classes, weights, model.input_size, frozen, self.spec.seed)

    def _recipe(self, params: Params) -> Recipe:
        training = self.spec.training
        return Recipe(
            epochs=training.epochs,
            batch_size=int(params["batch_size"]),
            learning_rate=float(params["learning_rate"]),
            weight_decay=training.weight_decay,
            label_smoothing=training.label_smoothing,
            augmentation=Augmentation(
                float(params["augmentation_strength"]), self.perturbations, training.horizontal_flip
            ),
            seed=self.spec.seed,
        )

    @cached_property
    def _tuning(self) -> Any:
        return build_evaluation_set(self.images.tuning, self.perturbations, self.compute.device)

    def _measurement(self, result: EpochResult) -> Measurement:
        objective = self.spec.objective
        parts = {name: accuracy.fraction for name, accuracy in result.accuracies.items()}
        perturbed = {p.name: parts[p.name] for p in objective.perturbations}
        weighted = sum(p.weight * parts[p.name] for p in objective.perturbations)
        return Measurement(
            step=result.epoch,
            score=objective.clean * parts[CLEAN] + weighted,
            parts=parts,
            attributes={
                "clean_accuracy": parts[CLEAN],
                "perturbed_accuracy": perturbed,
                "mean_perturbed_accuracy": weighted / sum(p.weight for p in objective.perturbations),
                "correct": {name: accuracy.correct for name, accuracy in result.accuracies.items()},
                "images": len(self.images.tuning),
                "diverged": result.diverged,
                "images_per_second": round(result.images_per_second, 1),
                "made_by": self._made_by,
            },
        )

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        """What it takes to make the same trial again."""
        return {
            "hpo": hpo.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "optuna": optuna.__version__,
            "numpy": np.__version__,
            "seed": self.spec.seed,
            "host": socket.gethostname(),
            "device": self.compute.description,
            "threads": torch.get_num_threads(),
            **self.fingerprints,
        }


def _commit() -> str | None:
    """The commit of hpo's own checkout, with '+' if it was changed since; None when installed from a package."""
    source = Path(__file__).parent
    if not (source.parent / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],  # noqa: S607
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    return described.stdout.strip() or None
