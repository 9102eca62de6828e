"""An objective that costs nothing, handed to workers the same way the real one is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import log10
from typing import Any

import numpy as np

from hpo.doors.objective import BelowBaseline, Measurement, Objective, Outcome, Trial
from hpo.doors.parameters import Params
from hpo.study_file.spec import Spec

TEST_IMAGES = 500


class FreeObjective(Objective):
    """Best at learning rate 0.01 and strength 0.8; strength costs clean accuracy. `fault` may raise."""

    def __init__(
        self, spec: Spec, store: Any = None, fault: Callable[[Params], None] | None = None, images: str = "these"
    ) -> None:
        self.images = images
        self.fault = fault
        limit = getattr(spec.objective, "max_clean_drop", None)
        self.constraints = {} if limit is None else {"clean_drop": BelowBaseline("clean", limit)}

    def fingerprints(self) -> Mapping[str, str]:
        return {"images": self.images, "weights": "none"}

    def run(self, trial: Trial) -> Iterator[Measurement]:
        params = trial.params
        if self.fault:
            self.fault(params)
        distance = abs(log10(float(params["learning_rate"])) + 2)
        strength = float(params["augmentation_strength"])
        for epoch in range(1, trial.steps + 1):
            learned = epoch / trial.steps
            clean = learned * (0.8 - 0.1 * distance - 0.05 * strength)
            noise = learned * (0.8 - 0.1 * distance - 0.3 * abs(strength - 0.8))
            yield Measurement(
                step=epoch,
                score=(clean + noise) / 2,
                parts={"clean": clean, "gaussian-noise": noise},
                constraints=self.constraints,
                attributes={"mean_perturbed_accuracy": noise, "images": 1000},
                outcomes=self._outcomes(trial, clean, noise) if trial.split == "test" and epoch == trial.steps else [],
            )

    def _outcomes(self, trial: Trial, clean: float, noise: float) -> list[Outcome]:
        """Of images that are as hard for every configuration; each seed is luckier with some."""
        random, hard = np.random.default_rng(trial.seed), np.random.default_rng(0).random(TEST_IMAGES)
        luck = random.normal(0, 0.05, TEST_IMAGES)
        noises = [Outcome("gaussian-noise", 0.0, hard + luck < noise * factor, 0.3 * factor) for factor in (1, 0.5)]
        found = [Outcome("clean", 0.0, hard + luck < clean), replace(noises[0]), replace(noises[1], main=False)]
        return [replace(each, value=float(np.mean(each.right))) for each in found]
