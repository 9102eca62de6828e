"""A study's progress, as `hpo status` and `hpo watch` show it, with few queries for any number of trials."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hpo.search.sql import attributes
from hpo.search.sql.attributes import SPLIT_KEY, TROUBLE_KEY
from hpo.search.sql.counts import Counts, count_in
from hpo.search.sql.queries import best_trials
from hpo.search.sql.stopping import latest_failures
from hpo.search.sql.storage import database_now
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import trial_heartbeats, trial_intermediate_values, trial_user_attributes, trials
from hpo.trial_result import TrialResult, in_iso_8601

FAILURES_SHOWN = 5
RECENT_TRIALS = 20


@dataclass(frozen=True)
class RunningTrial:
    """A running trial. step: the last one finished by it or by a trial that it continues; trouble: the temporary error
    that it waits out, if any.
    """

    number: int
    worker: str | None
    step: int
    started_at: datetime | None
    secs_since_start: float
    secs_since_heartbeat: float | None
    trouble: str | None

    def as_json(self) -> dict[str, Any]:
        """For --json; times in ISO 8601, UTC."""
        return {**asdict(self), "epoch": self.step, "started_at": in_iso_8601(self.started_at)}


@dataclass(frozen=True)
class Split:
    """Numbers of images that trials train on, are scored on (tuning) and never see (test), and of classes."""

    train: int
    tuning: int
    test: int
    classes: int


@dataclass(frozen=True)
class StudyStatus:
    """A study's progress. best: None before a trial is complete; interrupted: how many of the trials in Optuna's state
    FAIL were stopped or lost with their worker; split: None before a worker has loaded the images.
    """

    study: Study
    counts: Counts
    running: list[RunningTrial]
    best: TrialResult | None
    failures: list[tuple[int, str]]
    interrupted: int
    secs_per_trial: float | None
    split: Split | None

    @property
    def failed(self) -> int:
        """Trials that failed, without interrupted ones."""
        return self.counts.failed - self.interrupted

    @property
    def is_done(self) -> bool:
        """Whether the budget is used."""
        return self.counts.finished >= self.study.budget

    @property
    def trials_per_hour(self) -> float | None:
        """With the current workers; None if there are none, or no trial has finished yet."""
        if not self.running or not self.secs_per_trial:
            return None
        return 3600 * len(self.running) / self.secs_per_trial

    @property
    def secs_left(self) -> float | None:
        """Seconds until the budget is used, with the current workers; None if unknown."""
        if self.is_done or self.trials_per_hour is None:
            return None
        return 3600 * (self.study.budget - self.counts.finished) / self.trials_per_hour

    def as_json(self) -> dict[str, Any]:
        """For --json; times in ISO 8601, UTC."""
        return {
            "study": self.study.name,
            "budget": self.study.budget,
            "finished": self.counts.finished,
            **asdict(self.counts),
            "waiting": max(0, self.study.budget - self.counts.finished - self.counts.running),
            "failed": self.failed,
            "interrupted": self.interrupted,
            "stopped": self.study.stopped,
            "split": self.split and asdict(self.split),
            "trials_per_hour": self.trials_per_hour,
            "secs_left": self.secs_left,
            "best": self.best.as_json() if self.best else None,
            "running_trials": [trial.as_json() for trial in self.running],
            "failures": [{"number": number, "traceback": text} for number, text in self.failures],
        }


def progress(engine: sa.Engine, study: Study) -> tuple[Counts, list[RunningTrial]]:
    """Counts by state, and running trials; cheap enough to call several times a second."""
    with engine.connect() as connection:
        counts = count_in(connection, study.study_id)
        return counts, _running(connection, study.study_id) if counts.running else []


def status(engine: sa.Engine, study: Study) -> StudyStatus:
    """Reads the study's progress."""
    counts, running = progress(engine, study)
    with engine.connect() as connection:
        failures = latest_failures(connection, study, FAILURES_SHOWN) if counts.failed else []
        interrupted = _count_interrupted(connection, study.study_id) if counts.failed else 0
        secs_per_trial = _secs_per_trial(connection, study.study_id) if counts.running else None
    best = best_trials(engine, study.name, 1) if counts.complete and study.confirmation is None else []
    return StudyStatus(
        study=study,
        counts=counts,
        running=running,
        best=best[0] if best else None,
        failures=failures[::-1],
        interrupted=interrupted,
        secs_per_trial=secs_per_trial,
        split=read_split(engine, study),
    )


def read_split(engine: sa.Engine, study: Study) -> Split | None:
    """The numbers of images; None before a worker has loaded them."""
    with engine.connect() as connection:
        kept = attributes.read_study(connection, study.study_id, SPLIT_KEY)
    return None if kept is None else Split(**{key: kept[key] for key in ("train", "tuning", "test", "classes")})


def speed(engine: sa.Engine, study: Study) -> float:
    """Images a second that the running trials trained with in their last epochs, in all."""
    kept = trial_user_attributes.c
    query = (
        sa.select(kept.value_json)
        .join(trials, trials.c.trial_id == kept.trial_id)
        .where(trials.c.study_id == study.study_id, trials.c.state == "RUNNING", kept.key == "images_per_second")
    )
    with engine.connect() as connection:
        return float(sum(json.loads(text) or 0 for text in connection.execute(query).scalars()))


def _count_interrupted(connection: sa.Connection, study_id: int) -> int:
    kept = trial_user_attributes.c
    query = (
        sa.select(sa.func.count())
        .select_from(trials.join(trial_user_attributes, kept.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id, trials.c.state == "FAIL", kept.key == "interruption")
    )
    return int(connection.scalar(query) or 0)


def _running(connection: sa.Connection, study_id: int) -> list[RunningTrial]:
    keys = ("worker", "continues", TROUBLE_KEY)
    kept = {key: trial_user_attributes.alias() for key in keys}
    step = (
        sa.select(sa.func.max(trial_intermediate_values.c.step))
        .where(trial_intermediate_values.c.trial_id == trials.c.trial_id)
        .scalar_subquery()
    )
    query = (
        sa.select(
            trials.c.number,
            trials.c.datetime_start,
            step.label("step"),
            *(kept[key].c.value_json.label(key) for key in keys),
            trial_heartbeats.c.heartbeat,
            sa.type_coerce(database_now(connection), sa.DateTime).label("now"),
        )
        .outerjoin(trial_heartbeats, trial_heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING")
        .order_by(trials.c.number)
    )
    for key, attribute in kept.items():
        query = query.outerjoin(attribute, (attribute.c.trial_id == trials.c.trial_id) & (attribute.c.key == key))
    rows = connection.execute(query).all()
    earlier = {row.number: json.loads(row.continues) for row in rows if row.step is None and row.continues}
    done = _last_steps(connection, study_id, {number for numbers in earlier.values() for number in numbers})
    return [
        RunningTrial(
            number=row.number,
            worker=json.loads(row.worker) if row.worker else None,
            step=row.step or max((done.get(number, 0) for number in earlier.get(row.number, ())), default=0),
            started_at=row.datetime_start,
            secs_since_start=_secs_between(row.datetime_start, row.now) or 0.0,
            secs_since_heartbeat=_secs_between(row.heartbeat, row.now),
            trouble=json.loads(row.trouble) if row.trouble else None,
        )
        for row in rows
    ]


def _last_steps(connection: sa.Connection, study_id: int, numbers: Collection[int]) -> dict[int, int]:
    """The last step of each of these trials, by number; trials without one are left out."""
    value = trial_intermediate_values.c
    query = (
        sa.select(trials.c.number, sa.func.max(value.step).label("last"))
        .join(trial_intermediate_values, value.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.number.in_(numbers))
        .group_by(trials.c.number)
    )
    return {row.number: row.last for row in connection.execute(query)} if numbers else {}


def _secs_between(earlier: datetime | None, later: datetime) -> float | None:
    return None if earlier is None else max(0.0, (later - earlier).total_seconds())


def _secs_per_trial(connection: sa.Connection, study_id: int) -> float | None:
    """The mean over the RECENT_TRIALS that finished last."""
    t = trials.c
    query = (
        sa.select(t.datetime_start, t.datetime_complete)
        .where(t.study_id == study_id, t.state.in_(["COMPLETE", "PRUNED"]), t.datetime_complete.is_not(None))
        .order_by(t.datetime_complete.desc())
        .limit(RECENT_TRIALS)
    )
    durations = [(end - start).total_seconds() for start, end in connection.execute(query) if start]
    return sum(durations) / len(durations) if durations else None
