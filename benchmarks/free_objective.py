"""An objective that costs nothing, handed to workers the same way the real one is."""

from collections.abc import Callable, Iterator, Mapping
from math import log10
from typing import Any

from hpo.doors.objective import BelowBaseline, Measurement, Objective, Trial
from hpo.doors.parameters import Params
from hpo.study_file.spec import Spec


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
            )
