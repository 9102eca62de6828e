"""One trial as people and programs see it: what `hpo top`, `--json`, `--csv` and `hpo.best` give."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

CLEAN = "clean"
"""The part of a score that is measured on unperturbed data."""


@dataclass(frozen=True)
class TrialResult:
    """A trial. score and parts: None and empty where not measured; violation: the largest of its constraints' values,
    above 0 if it is infeasible, None if none is known; parts: what the score is made of, by name;
    reports: score and parts after each step; attributes: what else its objective and its workers kept with it.
    """

    study: str
    number: int
    state: str
    baseline: bool
    feasible: bool
    score: float | None
    violation: float | None
    parts: Mapping[str, float]
    params: Mapping[str, Any]
    reports: list[dict[str, float]]
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    attributes: Mapping[str, Any]

    @property
    def clean_accuracy(self) -> float | None:
        """On unperturbed images, 0 to 1."""
        return self.parts.get(CLEAN)

    @property
    def perturbed_accuracy(self) -> dict[str, float]:
        """By perturbation, 0 to 1."""
        return {name: value for name, value in self.parts.items() if name != CLEAN}

    @property
    def images(self) -> int | None:
        """How many tuning images the accuracies were measured on, but for those in `images_of`."""
        return self.attributes.get("images")

    @property
    def images_of(self) -> dict[str, int]:
        """How many images each part was measured on, where that is known."""
        return images_of(self.parts, self.attributes)

    @property
    def correct(self) -> dict[str, int]:
        """How many of these images were right, by part."""
        return {name: round(self.parts[name] * images) for name, images in self.images_of.items()}

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Score and parts after each epoch."""
        return [
            {"epoch": report["step"], **{k: v for k, v in report.items() if k != "step"}} for report in self.reports
        ]

    @property
    def clean_drop(self) -> float | None:
        """How far the clean accuracy is below the baseline's, if the study limits it."""
        return self.attributes.get("clean_drop")

    @property
    def made_by(self) -> dict[str, Any]:
        """Versions, commit, seed, machine and data that made the trial."""
        return self.attributes.get("made_by") or {}

    @property
    def failure(self) -> str | None:
        """The traceback of a failed trial."""
        return self.attributes.get("failure")

    @property
    def interruption(self) -> str | None:
        """Why a trial that did not fail of itself was given back."""
        return self.attributes.get("interruption")

    @property
    def out_of_memory(self) -> str | None:
        """What did not fit, if the trial has the worst score for that."""
        return self.attributes.get("out_of_memory")

    @property
    def continues(self) -> list[int]:
        """Numbers of the interrupted trials that this one went on from, the latest first."""
        return self.attributes.get("continues") or []

    @property
    def resumed_after_epoch(self) -> int | None:
        """The last step that a checkpoint of an interrupted trial had."""
        return self.attributes.get("resumed_after_epoch")

    def as_json(self) -> dict[str, Any]:
        """For --json; times in ISO 8601, UTC."""
        return {
            "study": self.study,
            "number": self.number,
            "state": self.state,
            "baseline": self.baseline,
            "feasible": self.feasible,
            "score": self.score,
            "parts": dict(self.parts),
            "clean_accuracy": self.clean_accuracy,
            "perturbed_accuracy": self.perturbed_accuracy,
            "params": dict(self.params),
            "correct": self.correct,
            "images": self.images,
            "images_of": self.images_of,
            "epochs": self.epochs,
            "clean_drop": self.clean_drop,
            "worker": self.worker,
            "started_at": in_iso_8601(self.started_at),
            "finished_at": in_iso_8601(self.finished_at),
            "made_by": self.made_by,
            "failure": self.failure,
            "interruption": self.interruption,
            "out_of_memory": self.out_of_memory,
            "continues": self.continues,
            "resumed_after_epoch": self.resumed_after_epoch,
        }

    def as_row(self) -> dict[str, Any]:
        """For --csv and pandas: a flat row, a column for each part and each parameter."""
        return {
            "study": self.study,
            "number": self.number,
            "state": self.state,
            "baseline": self.baseline,
            "feasible": self.feasible,
            "score": self.score,
            "clean_accuracy": self.clean_accuracy,
            **{as_column(name): value for name, value in self.perturbed_accuracy.items()},
            **self.params,
            "images": self.images,
            "worker": self.worker,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
        }


def images_of(parts: Mapping[str, float], attributes: Mapping[str, Any]) -> dict[str, int]:
    """How many images each part was measured on, by these attributes of a trial; empty where that is not known."""
    fewer = attributes.get("images_of") or {}
    return {name: fewer.get(name, attributes["images"]) for name in parts} if attributes.get("images") else {}


def as_column(name: str) -> str:
    """What a part is called where a hyphen cannot stand."""
    return name.replace("-", "_")


def in_iso_8601(time: datetime | None) -> str | None:
    """A time of the database, which is in UTC without saying so."""
    return time.isoformat(timespec="seconds") + "Z" if time else None
