"""The budget as slots: every trial that may still start is a WAITING trial, claimed by one atomic statement.

All changes here are single transactions, so that a process killed at any point leaves the slot in one place or the
other. Times are compared on the database's clock, in UTC; workers' clocks may differ.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from hpo.search.storage import Database
from hpo.search.tables import (
    studies,
    trial_heartbeats,
    trial_system_attributes,
    trial_user_attributes,
    trials,
)

HEARTBEAT_INTERVAL_SECS = 10
GRACE_PERIOD_SECS = 60
"""A trial whose last heartbeat is older was given up by its worker."""


@dataclass(frozen=True)
class Slot:
    """A trial that may start. fixed_params: values that the sampler does not choose; baseline: whether it is the
    baseline.
    """

    fixed_params: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False


def add_slots(connection: sa.Connection, study_id: int, slots: Sequence[Slot]) -> None:
    """Appends slots to a study, in bulk, with the trial numbers that follow its last one."""
    lock_study(connection, study_id)
    last = connection.scalar(sa.select(sa.func.max(trials.c.number)).where(trials.c.study_id == study_id))
    first = 0 if last is None else last + 1
    rows = [{"study_id": study_id, "number": first + i, "state": "WAITING"} for i in range(len(slots))]
    connection.execute(trials.insert(), rows)
    inserted = connection.execute(
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.number >= first)
        .order_by(trials.c.number)
    ).scalars()
    system, user = [], []
    for trial_id, slot in zip(inserted, slots, strict=True):
        if slot.fixed_params:
            value = json.dumps(dict(slot.fixed_params))
            system.append({"trial_id": trial_id, "key": "fixed_params", "value_json": value})
        if slot.baseline:
            user.append({"trial_id": trial_id, "key": "baseline", "value_json": "true"})
    if system:
        connection.execute(trial_system_attributes.insert(), system)
    if user:
        connection.execute(trial_user_attributes.insert(), user)


def lock_study(connection: sa.Connection, study_id: int) -> None:
    """Until the transaction ends nobody else numbers trials of this study: a write, so that SQLite locks too."""
    connection.execute(studies.update().where(studies.c.study_id == study_id).values(study_name=studies.c.study_name))


def claim(database: Database, study_id: int, baseline_alone: bool = False) -> int | None:
    """Takes the lowest waiting slot and gives its trial_id, RUNNING and with a first heartbeat; None if there is none.

    baseline_alone: give out nothing else until the baseline is complete (trials need its weights).
    """
    waiting = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(trials.c.number)
        .limit(1)
    )
    if baseline_alone:
        waiting = waiting.where(_is_baseline() | _baseline_is_complete(study_id))
    if database.engine.dialect.name == "postgresql":
        waiting = waiting.with_for_update(skip_locked=True)
    started_at = datetime.now(UTC).replace(tzinfo=None)
    with database.engine.begin() as connection:
        trial_id = connection.execute(
            trials.update()
            .where(trials.c.trial_id == waiting.scalar_subquery(), trials.c.state == "WAITING")
            .values(state="RUNNING", datetime_start=started_at)
            .returning(trials.c.trial_id)
        ).scalar()
        if trial_id is not None:
            connection.execute(trial_heartbeats.insert().values(trial_id=trial_id, heartbeat=_utc_now(connection)))
    return trial_id


def _is_baseline() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        trial_user_attributes.c.trial_id == trials.c.trial_id, trial_user_attributes.c.key == "baseline"
    )


def _baseline_is_complete(study_id: int) -> sa.ColumnElement[bool]:
    other = trials.alias()
    return sa.exists().where(
        other.c.study_id == study_id,
        other.c.state == "COMPLETE",
        trial_user_attributes.c.trial_id == other.c.trial_id,
        trial_user_attributes.c.key == "baseline",
    )


def beat(database: Database, trial_id: int) -> None:
    """Records that the worker of this trial is alive."""
    with database.engine.begin() as connection:
        connection.execute(
            trial_heartbeats.update()
            .where(trial_heartbeats.c.trial_id == trial_id)
            .values(heartbeat=_utc_now(connection))
        )


def give_back(database: Database, trial_id: int, why: Literal["failure", "interruption"], text: str) -> bool:
    """Fails a RUNNING trial and appends a slot in its place, in one transaction; False if it was no longer running.

    `text` is kept with the trial: the traceback of a failure, or what interrupted it. Only failures count against the
    study.
    """
    with database.engine.begin() as connection:
        study_id = connection.execute(
            trials.update()
            .where(trials.c.trial_id == trial_id, trials.c.state == "RUNNING")
            .values(state="FAIL", datetime_complete=datetime.now(UTC).replace(tzinfo=None))
            .returning(trials.c.study_id)
        ).scalar()
        if study_id is None:
            return False
        connection.execute(
            trial_user_attributes.insert().values(trial_id=trial_id, key=why, value_json=json.dumps(text))
        )
        fixed = connection.scalar(
            sa.select(trial_system_attributes.c.value_json).where(
                trial_system_attributes.c.trial_id == trial_id,
                trial_system_attributes.c.key == "fixed_params",
            )
        )
        baseline = connection.scalar(sa.select(_is_baseline()).where(trials.c.trial_id == trial_id))
        add_slots(connection, study_id, [Slot(json.loads(fixed) if fixed else {}, bool(baseline))])
    return True


def reap(database: Database, study_id: int) -> int:
    """Gives back the slots of trials whose workers are gone; the number of them."""
    with database.engine.connect() as connection:
        stale = connection.execute(_stale_trials(connection, study_id)).scalars().all()
    reason = f"no heartbeat for {GRACE_PERIOD_SECS} s: its worker is gone"
    return sum(give_back(database, trial_id, "interruption", reason) for trial_id in stale)


def _stale_trials(connection: sa.Connection, study_id: int) -> sa.Select[Any]:
    """RUNNING trials whose last sign of life, the start if there was no heartbeat, is older than the grace period."""
    last_sign = sa.func.coalesce(trial_heartbeats.c.heartbeat, trials.c.datetime_start)
    if connection.dialect.name == "postgresql":
        oldest: sa.ColumnElement[Any] = sa.literal_column(
            f"timezone('utc', now()) - interval '{GRACE_PERIOD_SECS} seconds'"
        )
    else:
        oldest = sa.func.datetime("now", f"-{GRACE_PERIOD_SECS} seconds")
    return (
        sa.select(trials.c.trial_id)
        .outerjoin(trial_heartbeats, trial_heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING", last_sign < oldest)
    )


def _utc_now(connection: sa.Connection) -> sa.ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return sa.literal_column("timezone('utc', now())")
    return sa.func.datetime("now")


@dataclass(frozen=True)
class Counts:
    """Trials of a study by state. The budget is used when `finished` reaches it."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


_FIELD_OF_STATE = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def count(engine: sa.Engine, study_id: int) -> Counts:
    """How many trials of a study are in each state."""
    query = sa.select(trials.c.state, sa.func.count()).where(trials.c.study_id == study_id).group_by(trials.c.state)
    with engine.connect() as connection:
        return Counts(**{_FIELD_OF_STATE[state]: number for state, number in connection.execute(query)})
