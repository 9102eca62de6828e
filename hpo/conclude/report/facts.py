"""What a report says of a search, read from the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hpo.conclude.candidates import choose
from hpo.conclude.confirmed import Confirmed, read_confirmed
from hpo.conclude.wilson import half_width
from hpo.errors import HpoError
from hpo.search.importances import parameter_importances
from hpo.search.sql.confirming import find_confirmation
from hpo.search.sql.queries import all_trials, improvements
from hpo.search.sql.studies import Study
from hpo.study_file.images import ImageSpec
from hpo.trial_result import TrialResult

MOST = 0.9
"""The share of the gain that counts as most of it."""


@dataclass(frozen=True)
class Cost:
    """hours: of workers, all together; wall_hours: from the first start to the last end; steps: that were measured."""

    trials: int
    steps: int
    hours: float
    wall_hours: float


@dataclass(frozen=True)
class Facts:
    """trials: all of the search, by number; best: the trial that was confirmed first, or the best one beside the
    baseline; confirmed: what a confirmation found, None without one; confirmation: its study; importances: by
    parameter, empty if the trials are too few; improved: trials that were better than all before them.
    """

    study: Study
    trials: Sequence[TrialResult]
    baseline: TrialResult
    best: TrialResult
    confirmation: Study | None
    confirmed: Confirmed | None
    importances: dict[str, float]
    improved: Sequence[TrialResult]
    confirming_hours: float = 0.0
    """Of workers, in all."""

    @property
    def starts_at_random(self) -> bool:
        return isinstance(self.study.spec, ImageSpec) and self.study.spec.model.weights == "none"

    @property
    def shown_params(self) -> dict[str, Any]:
        """Of the best trial, for people: `pretrained` is random where there are no weights."""
        params = dict(self.best.params)
        if self.starts_at_random and params.get("initial_weights") == "pretrained":
            params["initial_weights"] = "random"
        return params

    @property
    def weights_kept_by(self) -> dict[str, tuple[Study, int]]:
        """Where the weights of `baseline` and `best` are: the study, and the number of the trial that kept them. Raises
        HpoError.
        """
        if self.confirmation is None or self.confirmed is None:
            return {"baseline": (self.study, self.baseline.number), "best": (self.study, self.best.number)}
        places = {"baseline": 0, "best": self.confirmed.candidates[0].configuration}
        first = self.confirmed.first_runs
        if any(place not in first for place in places.values()):
            raise HpoError("the first seed of the confirmation is not complete")
        return {who: (self.confirmation, first[place]) for who, place in places.items()}

    @property
    def complete(self) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.state == "complete" and trial.score is not None]

    @property
    def cost(self) -> Cost:
        """Of the search alone."""
        known = _spans(self.trials)
        wall = (max(end for _, end in known) - min(start for start, _ in known)).total_seconds() if known else 0.0
        steps = sum(len(each.reports) for each in self.trials)
        finished = sum(each.state in ("complete", "pruned") for each in self.trials)
        return Cost(finished, steps, _hours(self.trials), wall / 3600)

    @property
    def most_of_the_gain(self) -> tuple[TrialResult, int, float] | None:
        """The trial with which MOST of the gain over the baseline was there, how many had finished by then, and how
        many hours after the start; None if nothing was gained.
        """
        began = _first([trial.started_at for trial in self.trials])
        of_baseline, best = self.baseline.score, self.best.score
        if began is None or of_baseline is None or best is None or best <= of_baseline:
            return None
        enough = of_baseline + MOST * (best - of_baseline)
        for trial in self.improved:
            if trial.score is not None and trial.score >= enough and trial.finished_at:
                before = [each for each in self.trials if each.finished_at and each.finished_at <= trial.finished_at]
                finished = sum(each.state in ("complete", "pruned") for each in before)
                return trial, finished, (trial.finished_at - began).total_seconds() / 3600
        return None

    @property
    def cheapest(self) -> tuple[TrialResult, float] | None:
        """The feasible trial that trained fastest among those whose score is within one interval of the best, and that
        interval's half width; None if the best is that itself, or speeds are not known.
        """
        if self.best.score is None or not self.best.images:
            return None
        score, images = min(1.0, max(0.0, self.best.score)), self.best.images
        half = half_width(score, images)
        near = [
            each
            for each in self.complete
            if each.feasible and not each.baseline and (each.score or 0) >= self.best.score - half and _speed(each)
        ]
        fastest = max(near, key=_speed, default=None)
        return None if fastest is None or _speed(fastest) <= 1.1 * _speed(self.best) else (fastest, half)


def _spans(trials: Sequence[TrialResult]) -> list[tuple[datetime, datetime]]:
    return [(each.started_at, each.finished_at) for each in trials if each.started_at and each.finished_at]


def _hours(trials: Sequence[TrialResult]) -> float:
    """Of workers, in all."""
    return sum((end - start).total_seconds() for start, end in _spans(trials)) / 3600


def _speed(trial: TrialResult) -> float:
    """Images a second in training."""
    return float(trial.attributes.get("images_per_second") or 0)


def _first(times: Sequence[datetime | None]) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def read_facts(engine: sa.Engine, study: Study, anyway: bool) -> Facts:
    """anyway: also of a search that is not finished. Raises StudyError, NothingCompleteError."""
    baseline, (best, *_) = choose(engine, study, 1, anyway)
    trials = all_trials(engine, study.name)
    confirmation = find_confirmation(engine, study)
    confirmed = None
    if confirmation is not None and (plan := confirmation.confirmation) is not None:
        confirmed = read_confirmed(engine, study, confirmation, [each.trial for each in plan.candidates])
    if confirmed is not None:
        best = next((each for each in trials if each.number == confirmed.candidates[0].trial), best)
    try:
        importances = parameter_importances(engine, study)
    except HpoError:
        importances = {}
    improved = improvements(engine, study.name)
    hours = _hours(all_trials(engine, confirmation.name)) if confirmation else 0.0
    return Facts(study, trials, baseline, best, confirmation, confirmed, importances, improved, hours)
