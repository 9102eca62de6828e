"""What a confirmation found, as data: of a configuration under a condition, and its difference to another."""

from dataclasses import dataclass
from typing import Any

from hpo.conclude.statistics import LEVEL, Interval, Table
from hpo.search.confirmation import Role

Key = tuple[str, float | None]
"""A condition: its name and severity."""


@dataclass(frozen=True)
class Condition:
    """main: whether it is of the study's own, at the severity that trials are scored at; claimed: whether something is
    claimed of it, as it counts in the score; images: how many, None where no more than a mean is known.
    """

    name: str
    severity: float | None
    main: bool
    claimed: bool
    images: int | None

    @property
    def key(self) -> Key:
        return self.name, self.severity


@dataclass(frozen=True)
class Difference:
    """To the baseline or to a control. p_value: corrected, None where nothing is claimed; table: (seeds, images)."""

    interval: Interval
    p_value: float | None
    table: Table

    @property
    def holds(self) -> bool:
        """Whether it is claimed, whatever its sign."""
        return self.p_value is not None and self.p_value <= LEVEL and self.interval.excludes_zero


@dataclass(frozen=True)
class Result:
    """Of a configuration under a condition. trial: its number in the search; a control has its candidate's; correct:
    how many images by seed, None where only means are known.
    """

    role: Role
    trial: int
    condition: Condition
    seeds: tuple[int, ...]
    correct: tuple[int, ...] | None
    accuracy: Interval
    to_baseline: Difference | None = None
    to_control: Difference | None = None

    def as_json(self) -> dict[str, Any]:
        """For --json: accuracies from 0 to 1, differences to the baseline."""
        to_baseline = _as_json("difference", self.to_baseline)
        return {
            "role": self.role,
            "trial": self.trial,
            "condition": self.condition.name,
            "severity": self.condition.severity,
            "images": self.condition.images,
            "seeds": list(self.seeds),
            "correct": None if self.correct is None else list(self.correct),
            "accuracy": self.accuracy.mean,
            "low": self.accuracy.low,
            "high": self.accuracy.high,
            **to_baseline,
            **_as_json("difference_to_control", self.to_control),
        }


def _as_json(name: str, difference: Difference | None) -> dict[str, Any]:
    found = difference.interval if difference else None
    return {
        name: found and found.mean,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
        f"{name}_p": difference and difference.p_value,
        f"{name}_holds": difference and difference.p_value is not None and difference.holds,
    }
