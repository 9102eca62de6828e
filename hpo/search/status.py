"""How far a study is: what `hpo status` and `hpo watch` show, with a few queries whatever the number of trials."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hpo.search.budget import Counts, count_in, database_now
from hpo.search.queries import TrialResult, best_trials, in_iso_8601
from hpo.search.study import Study, latest_failures
from hpo.search.tables import trial_heartbeats, trial_intermediate_values, trial_user_attributes, trials

FAILURES_SHOWN = 5
RECENT_TRIALS = 20


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs now. epoch: the last one that it finished."""

    number: int
    worker: str | None
    epoch: int
    started_at: datetime | None
    secs_since_start: float
    secs_since_heartbeat: float | None


@dataclass(frozen=True)
class StudyStatus:
    """One study. best: None before a trial is complete; interrupted: how many of the failed trials did not fail of
    themselves, but were stopped or lost with their worker.
    """

    study: Study
    counts: Counts
    running: list[RunningTrial]
    best: TrialResult | None
    failures: list[tuple[int, str]]
    interrupted: int
    secs_per_trial: float | None

    @property
    def is_done(self) -> bool:
        """Whether the budget is used."""
        return self.counts.finished >= self.study.budget

    @property
    def trials_per_hour(self) -> float | None:
        """With the workers that are at it now; None if none is, or nothing has finished yet."""
        if not self.running or not self.secs_per_trial:
            return None
        return 3600 * len(self.running) / self.secs_per_trial

    @property
    def secs_left(self) -> float | None:
        """Until the budget is used, if the workers stay as they are."""
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
            "interrupted": self.interrupted,
            "stopped": self.study.stopped,
            "trials_per_hour": self.trials_per_hour,
            "secs_left": self.secs_left,
            "best": self.best.as_json() if self.best else None,
            "running_trials": [asdict(trial) | {"started_at": in_iso_8601(trial.started_at)} for trial in self.running],
            "failures": [{"number": number, "traceback": text} for number, text in self.failures],
        }


def progress(engine: sa.Engine, study: Study) -> tuple[Counts, list[RunningTrial]]:
    """The least of it, for who looks often."""
    with engine.connect() as connection:
        counts = count_in(connection, study.study_id)
        return counts, _running(connection, study.study_id) if counts.running else []


def status(engine: sa.Engine, study: Study) -> StudyStatus:
    """Reads how far the study is."""
    counts, running = progress(engine, study)
    with engine.connect() as connection:
        failures = latest_failures(connection, study, FAILURES_SHOWN) if counts.failed else []
        interrupted = _count_interrupted(connection, study.study_id) if counts.failed else 0
        secs_per_trial = _secs_per_trial(connection, study.study_id) if counts.running else None
    best = best_trials(engine, study.name, 1) if counts.complete else []
    return StudyStatus(study, counts, running, best[0] if best else None, failures[::-1], interrupted, secs_per_trial)


def _count_interrupted(connection: sa.Connection, study_id: int) -> int:
    kept = trial_user_attributes.c
    query = (
        sa.select(sa.func.count())
        .select_from(trials.join(trial_user_attributes, kept.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id, trials.c.state == "FAIL", kept.key == "interruption")
    )
    return int(connection.scalar(query) or 0)


def _running(connection: sa.Connection, study_id: int) -> list[RunningTrial]:
    worker = trial_user_attributes
    epoch = (
        sa.select(sa.func.max(trial_intermediate_values.c.step))
        .where(trial_intermediate_values.c.trial_id == trials.c.trial_id)
        .scalar_subquery()
    )
    query = (
        sa.select(
            trials.c.number,
            trials.c.datetime_start,
            sa.func.coalesce(epoch, 0).label("epoch"),
            worker.c.value_json.label("worker"),
            trial_heartbeats.c.heartbeat,
            sa.type_coerce(database_now(connection), sa.DateTime).label("now"),
        )
        .outerjoin(worker, (worker.c.trial_id == trials.c.trial_id) & (worker.c.key == "worker"))
        .outerjoin(trial_heartbeats, trial_heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING")
        .order_by(trials.c.number)
    )
    return [
        RunningTrial(
            number=row.number,
            worker=json.loads(row.worker) if row.worker else None,
            epoch=row.epoch,
            started_at=row.datetime_start,
            secs_since_start=_secs_between(row.datetime_start, row.now) or 0.0,
            secs_since_heartbeat=_secs_between(row.heartbeat, row.now),
        )
        for row in connection.execute(query)
    ]


def _secs_between(earlier: datetime | None, later: datetime) -> float | None:
    return None if earlier is None else max(0.0, (later - earlier).total_seconds())


def _secs_per_trial(connection: sa.Connection, study_id: int) -> float | None:
    """The mean of the trials that finished last."""
    t = trials.c
    query = (
        sa.select(t.datetime_start, t.datetime_complete)
        .where(t.study_id == study_id, t.state.in_(["COMPLETE", "PRUNED"]), t.datetime_complete.is_not(None))
        .order_by(t.datetime_complete.desc())
        .limit(RECENT_TRIALS)
    )
    durations = [(end - start).total_seconds() for start, end in connection.execute(query) if start]
    return sum(durations) / len(durations) if durations else None
