"""An objective that costs nothing, handed to workers the same way the real one is."""

from collections.abc import Callable, Generator, Sequence
from math import log10
from typing import Any

from hpo.doors.objective import Measurement, Trial
from hpo.doors.parameters import Params
from hpo.study_file.spec import Spec


class FreeObjective:
    """Best at learning rate 0.01 and strength 0.8; strength costs clean accuracy. `fault` may raise."""

    def __init__(self, spec: Spec, fault: Callable[[Params], None] | None = None, images: str = "these") -> None:
        self.epochs = spec.training.epochs
        self.fingerprints = {"images": images, "weights": "none"}
        self.about: dict[str, Any] = {}
        self.fault = fault

    def check(self) -> None:
        pass

    def discard(self, numbers: Sequence[int]) -> None:
        pass

    def run(self, trial: Trial) -> Generator[Measurement]:
        params = trial.params
        if self.fault:
            self.fault(params)
        distance = abs(log10(float(params["learning_rate"])) + 2)
        strength = float(params["augmentation_strength"])
        for epoch in range(1, self.epochs + 1):
            learned = epoch / self.epochs
            clean = learned * (0.8 - 0.1 * distance - 0.05 * strength)
            noise = learned * (0.8 - 0.1 * distance - 0.3 * abs(strength - 0.8))
            yield Measurement(
                step=epoch,
                score=(clean + noise) / 2,
                parts={"clean": clean, "gaussian-noise": noise},
                attributes={
                    "clean_accuracy": clean,
                    "perturbed_accuracy": {"gaussian-noise": noise},
                    "gaussian-noise": noise,
                    "mean_perturbed_accuracy": noise,
                    "images": 1000,
                },
            )
