"""The budget, and the claims of trials: finished + running + waiting trials of a study never exceed its budget.

Trials are counted, not stored in advance. A claim takes a waiting trial (one that was given back or enqueued), or adds
the study's next trial while the budget allows. Every change is idempotent, and one transaction under the study's lock,
so that a process killed at any point leaves nothing half done. Times are compared on the database's clock, in UTC,
since workers' clocks may differ.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa

from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BUDGET_KEY, CONFIRMS_KEY, NEXT_START_KEY, WHY_KEY, read_params
from hpo.search.sql.conditions import (
    StudyKey,
    baseline_is_complete,
    is_baseline,
    is_given_back,
    is_paused,
    is_still_there,
    is_stopped,
)
from hpo.search.sql.counts import Counts, count_in
from hpo.search.sql.deaths import DEATHS, MAX_DEATHS, died_repeatedly
from hpo.search.sql.fence import TOKEN_KEY, Hold, TrialLost, lock_held, new_token, write_token
from hpo.search.sql.storage import database_now, writing
from hpo.search.sql.tables import (
    PAUSED_KEY,
    studies,
    study_user_attributes,
    trial_heartbeats,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

Why = Literal["failure", "stopped", "worker lost", "device failed"]
"""Why a trial is given back; only failures count against the study."""


@dataclass(frozen=True)
class Start:
    """What a trial starts with. fixed_params: values that the sampler does not choose; baseline: whether it is the
    baseline; continues: numbers of the trials whose checkpoints it may continue from, latest first; confirms: which run
    of a confirmation it is (hpo.search.confirmation), None in a search.
    """

    fixed_params: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    continues: tuple[int, ...] = ()
    confirms: Mapping[str, Any] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether no other configuration can take its place if it fails."""
        return self.baseline or self.confirms is not None


@dataclass(frozen=True)
class Claim:
    """A RUNNING trial that this worker holds until it ends the trial or loses it."""

    hold: Hold
    number: int
    start: Start


StartOf = Callable[[int], Start]
"""The start of a study's n-th new trial, counted from 0."""


def lock_study(connection: sa.Connection, study_id: int) -> None:
    """Locks the study until the transaction ends, so that nobody else adds trials. A write, so that SQLite locks too.
    Raises StudyError if the study was deleted.
    """
    same = studies.update().where(studies.c.study_id == study_id).values(study_name=studies.c.study_name)
    if not connection.execute(same).rowcount:
        raise StudyError("the study was deleted")


def add_trial(connection: sa.Connection, study_id: int, start: Start) -> int:
    """Appends a WAITING trial to a study that is locked, and returns its trial_id."""
    last = connection.scalar(sa.select(sa.func.max(trials.c.number)).where(trials.c.study_id == study_id))
    row = {"study_id": study_id, "number": 0 if last is None else last + 1, "state": "WAITING"}
    trial_id = int(connection.execute(trials.insert().values(row).returning(trials.c.trial_id)).scalar_one())
    if start.fixed_params:
        fixed = {"fixed_params": dict(start.fixed_params)}
        attributes.write(connection, trial_system_attributes, trial_id, fixed)
    kept: dict[str, Any] = {"baseline": True} if start.baseline else {}
    if start.continues:
        kept["continues"] = list(start.continues)
    if start.confirms is not None:
        kept[CONFIRMS_KEY] = dict(start.confirms)
    attributes.write(connection, trial_user_attributes, trial_id, kept)
    return trial_id


def claimed_before(engine: sa.Engine, study_id: int, token: str) -> Claim | None:
    """The running trial that was claimed with this token, in case the answer to the claim was lost."""
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
    engine: sa.Engine,
    study: StudyKey,
    start_of: StartOf,
    worker: str,
    baseline_alone: bool = False,
    token: str | None = None,
    most: int | None = None,
) -> Claim | None:
    """Claims a waiting trial, or else the next one of the budget; None if there is none, or if `most` trials run.

    Interrupted trials come first, then others that wait, by number. baseline_alone: only the baseline can be claimed
    until it is complete, since other trials need what it learned.
    """
    study_id, _ = study
    with engine.connect() as connection:  # without a lock, since idle workers ask every second
        if _room(connection, study, most) is None:
            return None
    with writing(engine) as connection:
        try:
            lock_study(connection, study_id)
        except StudyError:
            return None
        if (room := _room(connection, study, most)) is None:
            return None
        trial_id = _waiting(connection, study_id, baseline_alone)
        if trial_id is None:
            trial_id = _next_trial(connection, study_id, *room, start_of, baseline_alone)
        if trial_id is None:
            trial_id = _waiting(connection, study_id, baseline_alone, also_failed_baseline=True)
        return None if trial_id is None else take(connection, trial_id, worker, token)


def _room(connection: sa.Connection, study: StudyKey, most: int | None) -> tuple[Counts, int] | None:
    """The study's counts and budget if these allow another trial to run, else None. Paused trials count, since they
    finish sooner or later.
    """
    study_id, _ = study
    if not connection.scalar(sa.select(~is_stopped(study_id) & is_still_there(study))):
        return None
    counts, budget = count_in(connection, study_id), read_budget(connection, study_id)
    has_room = counts.finished + counts.running + counts.paused < budget and (most is None or counts.running < most)
    return (counts, budget) if has_room else None


def read_budget(connection: sa.Connection, study_id: int) -> int:
    """The budget of a study; 0 if hpo did not create it."""
    return int(attributes.read_study(connection, study_id, BUDGET_KEY) or 0)


def _waiting(
    connection: sa.Connection, study_id: int, baseline_alone: bool, also_failed_baseline: bool = False
) -> int | None:
    """The waiting trial to run first. In studies of older versions of hpo, all trials of the budget wait; trial 1 is
    known to be good and runs before the baseline, so that a single worker has a good result soon.
    """
    turn = sa.case((trials.c.number == 0, 1.5), (is_given_back(), -1), else_=trials.c.number)
    query = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING", ~is_paused())
        .order_by(turn, trials.c.number)
        .limit(1)
    )
    if baseline_alone:
        query = query.where(is_baseline() | baseline_is_complete(study_id))
    if not also_failed_baseline:  # it may fail again, so it runs last
        query = query.where((trials.c.number == 0) | is_given_back() | ~is_baseline())
    found: int | None = connection.scalar(query)
    return found


def _next_trial(
    connection: sa.Connection, study_id: int, counts: Counts, budget: int, start_of: StartOf, baseline_alone: bool
) -> int | None:
    """Adds the next trial if the budget allows. The baseline, trial 0, waits for the second claim: trial 1 is known to
    be good, so that a single worker has a good result soon.
    """
    if counts.budgeted >= budget:
        return None
    before: int | None = attributes.read_study(connection, study_id, NEXT_START_KEY)
    number = budget if before is None else before  # an older hpo used all starts when the study was submitted
    start = start_of(number)
    if baseline_alone and not start.baseline and not connection.scalar(sa.select(baseline_is_complete(study_id))):
        return None
    trial_id = add_trial(connection, study_id, start)
    if start.baseline and not baseline_alone and counts.budgeted + 2 <= budget:
        number += 1
        trial_id = add_trial(connection, study_id, start_of(number))
    attributes.write(connection, study_user_attributes, study_id, {NEXT_START_KEY: number + 1})
    return trial_id


def take(connection: sa.Connection, trial_id: int, worker: str, token: str | None = None) -> Claim | None:
    """Makes a waiting or paused trial RUNNING, with worker, token and a first heartbeat; None if it no longer waits."""
    row = connection.execute(
        trials.update()
        .where(trials.c.trial_id == trial_id, trials.c.state == "WAITING")
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
    a = trial_user_attributes
    was_paused = (a.c.trial_id == row.trial_id) & (a.c.key == PAUSED_KEY)
    resumed = connection.execute(a.delete().where(was_paused))
    if resumed.rowcount:
        connection.execute(trial_values.delete().where(trial_values.c.trial_id == row.trial_id))
    return _claim_of(connection, hold, row.number)


def _claim_of(connection: sa.Connection, hold: Hold, number: int) -> Claim:
    start = _read_start(connection, hold.trial_id)
    if params := read_params(connection, hold.trial_id):  # it was paused
        start = replace(start, fixed_params=params, continues=(number, *start.continues))
    return Claim(hold, number, start)


def _read_start(connection: sa.Connection, trial_id: int) -> Start:
    system, user = trial_system_attributes.c, trial_user_attributes.c
    queries = [
        sa.select(table.key, table.value_json).where(table.trial_id == trial_id, table.key.in_(keys))
        for table, keys in ((system, ["fixed_params"]), (user, ["baseline", "continues", CONFIRMS_KEY]))
    ]
    found = {key: json.loads(value) for key, value in connection.execute(sa.union_all(*queries))}
    continues, confirms = tuple(found.get("continues", ())), found.get(CONFIRMS_KEY)
    return Start(found.get("fixed_params", {}), "baseline" in found, continues, confirms)


def give_back(engine: sa.Engine, hold: Hold, why: Why, text: str) -> bool:
    """Fails a RUNNING trial and adds its successor, if any, in one transaction; False if the hold was lost.

    `text`, the traceback of a failure or the reason of an interruption, is kept with the trial. After an interruption,
    the same configuration waits to continue from its checkpoint. After a failure, the budget has room for another one;
    only the baseline, which all others are compared with, and the runs of a confirmation wait to be tried again.
    """
    with writing(engine) as connection:
        try:
            lock_held(connection, hold)
        except TrialLost:
            return False
        give_back_in(connection, hold.trial_id, why, text)
    return True


def give_back_in(connection: sa.Connection, trial_id: int, why: Why, text: str) -> None:
    """The same of a trial that the caller's transaction holds."""
    query = sa.select(trials.c.study_id, trials.c.number).where(trials.c.trial_id == trial_id)
    row = connection.execute(query).one()
    failed = {"state": "FAIL", "datetime_complete": database_now(connection)}
    connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(failed))
    start = _read_start(connection, trial_id)
    attributes.write(connection, trial_system_attributes, trial_id, {WHY_KEY: why})
    if why in DEATHS and died_repeatedly(connection, row.study_id, trial_id, start.continues):
        why = "failure"
        text = f"{MAX_DEATHS} workers in a row died in the same step of this configuration (out of memory?): {text}"
    kept = {"failure" if why == "failure" else "interruption": text}
    attributes.write(connection, trial_user_attributes, trial_id, kept)
    if why != "failure":
        if params := read_params(connection, trial_id):
            start = replace(start, fixed_params=params, continues=(row.number, *start.continues))
    elif start.is_needed:
        start = replace(start, continues=())
    else:
        return
    lock_study(connection, row.study_id)
    add_trial(connection, row.study_id, start)
