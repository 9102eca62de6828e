"""The budget as slots: finished + running + waiting trials of a study are always exactly its budget.

A slot is a WAITING trial. Every change here is one transaction, so that a process killed at any point leaves a slot in
one place or the other, and every change may be said twice. Times are compared on the database's clock, in UTC;
workers' clocks may differ.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BUDGET_KEY, read_params
from hpo.search.sql.conditions import (
    StudyKey,
    baseline_is_complete,
    is_baseline,
    is_given_back,
    is_paused,
    is_still_there,
    is_stopped,
)
from hpo.search.sql.fence import TOKEN_KEY, Hold, TrialLost, lock_held, new_token, write_token
from hpo.search.sql.storage import writing
from hpo.search.sql.tables import (
    PAUSED_KEY,
    studies,
    trial_heartbeats,
    trial_intermediate_values,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

DEATHS_BORNE = 3
"""So many workers in a row may die in the same epoch of a configuration before it counts as failed."""
LOST = "its worker was lost"
DEVICE_FAILED = "its worker's device failed"
"""What a trial is given back with when its worker dies, or has to; followed by more words."""


@dataclass(frozen=True)
class Slot:
    """A trial that may start. fixed_params: values that the sampler does not choose; baseline: whether it is the
    baseline; continues: numbers of the trials whose checkpoints it may go on from, latest first.
    """

    fixed_params: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    continues: tuple[int, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A slot that was claimed: now a RUNNING trial of this worker, until somebody takes it away."""

    hold: Hold
    number: int
    slot: Slot


@dataclass(frozen=True)
class Counts:
    """Trials of a study by state. paused: of the waiting ones."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


def add_slots(connection: sa.Connection, study_id: int, slots: Sequence[Slot]) -> None:
    """Appends slots to a study, in bulk, with the trial numbers that follow its last one."""
    lock_study(connection, study_id)
    last = connection.scalar(sa.select(sa.func.max(trials.c.number)).where(trials.c.study_id == study_id))
    first = 0 if last is None else last + 1
    rows = [{"study_id": study_id, "number": first + i, "state": "WAITING"} for i in range(len(slots))]
    attributes.insert(connection, trials, rows)
    inserted = connection.execute(
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.number >= first)
        .order_by(trials.c.number)
    ).scalars()
    system: list[tuple[int, str, Any]] = []
    user: list[tuple[int, str, Any]] = []
    for trial_id, slot in zip(inserted, slots, strict=True):
        if slot.fixed_params:
            system.append((trial_id, "fixed_params", dict(slot.fixed_params)))
        if slot.baseline:
            user.append((trial_id, "baseline", True))
        if slot.continues:
            user.append((trial_id, "continues", list(slot.continues)))
    attributes.write_all(connection, trial_system_attributes, system)
    attributes.write_all(connection, trial_user_attributes, user)


def lock_study(connection: sa.Connection, study_id: int) -> None:
    """Until the transaction ends nobody else numbers trials of this study: a write, so that SQLite locks too. Raises
    StudyError if it is no longer there.
    """
    same = studies.update().where(studies.c.study_id == study_id).values(study_name=studies.c.study_name)
    if not connection.execute(same).rowcount:
        raise StudyError("the study was deleted")


def claimed_before(engine: sa.Engine, study_id: int, token: str) -> Claim | None:
    """What was claimed with this token, if the answer was lost."""
    kept = trial_system_attributes.c
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .join(trial_system_attributes, (kept.trial_id == trials.c.trial_id) & (kept.key == TOKEN_KEY))
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING", kept.value_json == json.dumps(token))
    )
    with engine.connect() as connection:
        found = connection.execute(query).one_or_none()
        return _claim_of(connection, Hold(found.trial_id, token), found.number) if found else None


def claim(
    engine: sa.Engine, study: StudyKey, worker: str, baseline_alone: bool = False, token: str | None = None
) -> Claim | None:
    """Takes the first slot that waits; None if there is none.

    What was interrupted goes on first; else in the order of their numbers, but for trial 1, a configuration known to be
    good, which goes before the baseline: so a single worker soon has something to show. baseline_alone: give out
    nothing else until the baseline is complete (trials need its weights).
    """
    study_id, _ = study
    waiting = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING", ~is_paused())
        .where(~is_stopped(study_id), is_still_there(study))
        .order_by(
            sa.case((trials.c.number == 0, 1.5), (is_given_back(), -1), else_=trials.c.number),
            trials.c.number,
        )
        .limit(1)
    )
    if baseline_alone:
        waiting = waiting.where(is_baseline() | baseline_is_complete(study_id))
    if engine.dialect.name == "postgresql":
        waiting = waiting.with_for_update(skip_locked=True, of=trials)
    with writing(engine) as connection:
        return take(connection, waiting.scalar_subquery(), worker, token)


def take(
    connection: sa.Connection, chosen: sa.ColumnElement[int], worker: str, token: str | None = None
) -> Claim | None:
    """Makes a waiting or paused trial RUNNING, with worker, token and a first heartbeat; None if it is gone."""
    row = connection.execute(
        trials.update()
        .where(trials.c.trial_id == chosen, trials.c.state == "WAITING")
        .values(state="RUNNING", datetime_start=database_now(connection), datetime_complete=None)
        .returning(trials.c.trial_id, trials.c.number)
    ).one_or_none()
    if row is None:
        return None
    beat = {"trial_id": row.trial_id, "heartbeat": database_now(connection)}
    attributes.upsert(connection, trial_heartbeats, [beat], ("trial_id",))
    attributes.write(connection, trial_user_attributes, row.trial_id, {"worker": worker})
    hold = Hold(row.trial_id, token or new_token())
    write_token(connection, hold)
    resumed = connection.execute(
        trial_user_attributes.delete().where(
            trial_user_attributes.c.trial_id == row.trial_id, trial_user_attributes.c.key == PAUSED_KEY
        )
    )
    if resumed.rowcount:
        connection.execute(trial_values.delete().where(trial_values.c.trial_id == row.trial_id))
    return _claim_of(connection, hold, row.number)


def _claim_of(connection: sa.Connection, hold: Hold, number: int) -> Claim:
    slot = _read_slot(connection, hold.trial_id)
    if params := read_params(connection, hold.trial_id):  # it was paused
        slot = Slot(params, slot.baseline, (number, *slot.continues))
    return Claim(hold, number, slot)


def _read_slot(connection: sa.Connection, trial_id: int) -> Slot:
    system, user = trial_system_attributes.c, trial_user_attributes.c
    queries = [
        sa.select(table.key, table.value_json).where(table.trial_id == trial_id, table.key.in_(keys))
        for table, keys in ((system, ["fixed_params"]), (user, ["baseline", "continues"]))
    ]
    found = {key: json.loads(value) for key, value in connection.execute(sa.union_all(*queries))}
    return Slot(found.get("fixed_params", {}), "baseline" in found, tuple(found.get("continues", ())))


def give_back(engine: sa.Engine, hold: Hold, why: Literal["failure", "interruption"], text: str) -> bool:
    """Fails a RUNNING trial and appends a slot in its place, in one transaction; False if it was no longer held so.

    `text` is kept with the trial: the traceback of a failure, or what interrupted it. Only failures count against the
    study. After an interruption the slot tries the same configuration again, from its checkpoint; after a failure
    another one, unless it is the baseline, which every other trial is compared with.
    """
    trial_id = hold.trial_id
    with writing(engine) as connection:
        try:
            row = lock_held(connection, hold)
        except TrialLost:
            return False
        failed = {"state": "FAIL", "datetime_complete": database_now(connection)}
        connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(failed))
        slot = _read_slot(connection, trial_id)
        if text.startswith((LOST, DEVICE_FAILED)) and _died_repeatedly(
            connection, row.study_id, trial_id, slot.continues
        ):
            why = "failure"
            text = (
                f"{DEATHS_BORNE} workers in a row died in the same epoch of this configuration (out of memory?): {text}"
            )
        attributes.write(connection, trial_user_attributes, trial_id, {why: text})
        if why == "interruption" and (params := read_params(connection, trial_id)):
            again = Slot(params, slot.baseline, (row.number, *slot.continues))
        elif why == "failure":
            again = Slot(slot.fixed_params if slot.baseline else {}, slot.baseline)
        else:
            again = slot
        add_slots(connection, row.study_id, [again])
    return True


def _died_repeatedly(connection: sa.Connection, study_id: int, trial_id: int, continues: Sequence[int]) -> bool:
    """Whether this trial and those before it lost so many workers in a row without finishing one more epoch."""
    before = list(continues[: DEATHS_BORNE - 1])
    text = trial_user_attributes.c.value_json
    last_step = sa.func.coalesce(sa.func.max(trial_intermediate_values.c.step), 0)
    query = (
        sa.select(trials.c.trial_id, last_step)
        .outerjoin(trial_intermediate_values, trial_intermediate_values.c.trial_id == trials.c.trial_id)
        .outerjoin(
            trial_user_attributes,
            (trial_user_attributes.c.trial_id == trials.c.trial_id) & (trial_user_attributes.c.key == "interruption"),
        )
        .where(trials.c.study_id == study_id)
        .where(
            (trials.c.trial_id == trial_id)
            | (trials.c.number.in_(before) & sa.or_(*(text.startswith(f'"{how}') for how in (LOST, DEVICE_FAILED))))
        )
        .group_by(trials.c.trial_id)
    )
    steps = [step for _, step in connection.execute(query.order_by(trials.c.trial_id))]
    return len(steps) == DEATHS_BORNE and steps[-1] <= steps[0]


SQLITE_TIME = "%Y-%m-%d %H:%M:%f"


def database_now(connection: sa.Connection) -> sa.ColumnElement[Any]:
    """The time on the database's clock, in UTC."""
    if connection.dialect.name == "postgresql":
        return sa.literal_column("timezone('utc', clock_timestamp())")
    return sa.func.strftime(SQLITE_TIME, "now")


def heal(engine: sa.Engine, study_id: int) -> None:
    """Restores the budget after what hpo did not do: trials failed, added or deleted by other tools."""
    with engine.connect() as connection:
        if count_missing(connection, study_id) == 0:
            return
    with writing(engine) as connection:
        lock_study(connection, study_id)
        missing = count_missing(connection, study_id)
        if missing > 0:
            add_slots(connection, study_id, [Slot()] * missing)
        elif missing < 0:
            _withdraw(connection, study_id, -missing)


def count_missing(connection: sa.Connection, study_id: int) -> int:
    """How many slots the budget lacks; below 0 if there are too many. A study that was deleted meanwhile lacks none."""
    counts = count_in(connection, study_id)
    budget: int | None = attributes.read_study(connection, study_id, BUDGET_KEY)
    return 0 if budget is None else budget - counts.finished - counts.running - counts.waiting


def _withdraw(connection: sa.Connection, study_id: int, most: int) -> None:
    """Fails the last waiting slots, as many as there are too many."""
    last = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(trials.c.number.desc())
        .limit(most)
    )
    if connection.dialect.name == "postgresql":
        last = last.with_for_update(skip_locked=True)
    withdrawn = connection.execute(last).scalars().all()
    ended = {"state": "FAIL", "datetime_complete": database_now(connection)}
    connection.execute(trials.update().where(trials.c.trial_id.in_(withdrawn)).values(ended))
    texts = [(trial_id, "interruption", "more slots than the budget") for trial_id in withdrawn]
    attributes.write_all(connection, trial_user_attributes, texts)


_FIELD_OF_STATE = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def count(engine: sa.Engine, study_id: int) -> Counts:
    """How many trials of a study are in each state."""
    with engine.connect() as connection:
        return count_in(connection, study_id)


def count_all(connection: sa.Connection) -> dict[int, Counts]:
    """The same of every study that has trials, by study_id."""
    return _count(connection, sa.true())


def count_in(connection: sa.Connection, study_id: int) -> Counts:
    """The same within a transaction."""
    return _count(connection, trials.c.study_id == study_id).get(study_id, Counts())


def _count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> dict[int, Counts]:
    t = trials.c
    paused = sa.func.sum(sa.case((is_paused(), 1), else_=0))
    query = sa.select(t.study_id, t.state, sa.func.count(), paused).where(which).group_by(t.study_id, t.state)
    found: dict[int, dict[str, int]] = {}
    for study_id, state, number, waiting_paused in connection.execute(query):
        counts = found.setdefault(study_id, {"paused": 0})
        counts[_FIELD_OF_STATE[state]] = number
        counts["paused"] += waiting_paused
    return {study_id: Counts(**counts) for study_id, counts in found.items()}
