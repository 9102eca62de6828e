"""Heartbeats of workers; trials whose heartbeats have stopped are given back by others."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import sqlalchemy as sa

from hpo.search.sql import attributes
from hpo.search.sql.attributes import STOPPED_KEY
from hpo.search.sql.claims import Claim, give_back
from hpo.search.sql.fence import TOKEN_KEY, Hold, TakenOver, TrialDeleted, token_of
from hpo.search.sql.outages import detect_suspension, secs_since_outage
from hpo.search.sql.storage import SQLITE_TIME, database_now, writing
from hpo.search.sql.tables import trial_heartbeats, trial_system_attributes, trials
from hpo.stopping import interruptible

HEARTBEAT_INTERVAL_SECS = 10.0
LOST = "its worker was lost"
GRACE_PERIOD_SECS = 60.0
"""A trial whose last heartbeat is older counts as lost with its worker."""


class StudyStopped(BaseException):
    """Raised in the middle of a trial when its study was stopped."""


Beaten = Literal["running", "ended", "stopped", "lost", "deleted"]
INTERRUPTIONS: dict[Beaten, Callable[[], BaseException]] = {
    "stopped": StudyStopped,
    "lost": TakenOver,
    "deleted": TrialDeleted,
}


@contextlib.contextmanager
def beating(engine: sa.Engine, study_id: int, claim: Claim) -> Iterator[None]:
    """Sends heartbeats from a thread while the block runs; interrupts the block if the trial is lost or its study is
    stopped.

    A failed heartbeat is ignored, since the next one counts. Raises TrialLost, StudyStopped.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(HEARTBEAT_INTERVAL_SECS):
            detect_suspension(3 * HEARTBEAT_INTERVAL_SECS)
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                state = beat(engine, study_id, claim.hold)
                if state in INTERRUPTIONS:
                    interrupt(INTERRUPTIONS[state]())
                if state != "running":
                    return

    with interruptible() as interrupt:
        thread = threading.Thread(target=run, name=f"heartbeats of trial {claim.number}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def beat(engine: sa.Engine, study_id: int, hold: Hold) -> Beaten:
    """Records that the trial's worker is alive. Returns whether the worker still holds the trial, or has ended it (and
    may still be removing its checkpoints), and whether the study was stopped.
    """
    with writing(engine) as connection:
        state = connection.scalar(sa.select(trials.c.state).where(trials.c.trial_id == hold.trial_id))
        if state is None:
            return "deleted"
        if state == "FAIL" or token_of(connection, hold.trial_id) != hold.token:
            return "lost"
        if state != "RUNNING":
            return "ended"
        connection.execute(
            trial_heartbeats.update()
            .where(trial_heartbeats.c.trial_id == hold.trial_id)
            .values(heartbeat=database_now(connection))
        )
        return "stopped" if attributes.read_study(connection, study_id, STOPPED_KEY) is not None else "running"


def reap(engine: sa.Engine, study_id: int) -> int:
    """Gives back the trials of dead workers, and returns their number.

    Does nothing for a grace period after this process has lost the database or was suspended, as other workers may not
    have been able to send heartbeats either.
    """
    detect_suspension(3 * HEARTBEAT_INTERVAL_SECS)
    if secs_since_outage() < GRACE_PERIOD_SECS:
        return 0
    with engine.connect() as connection:
        stale = holds(connection, _stale_trials(connection, study_id))
    return sum(give_back(engine, hold, "worker lost", LOST) for hold in stale)


def reap_if_allowed(engine: sa.Engine, study_id: int) -> None:
    """As `reap`, but ignores errors, for users who may lack the right to write."""
    with contextlib.suppress(sa.exc.DBAPIError):
        reap(engine, study_id)


def _stale_trials(connection: sa.Connection, study_id: int) -> sa.Select[Any]:
    """RUNNING trials whose last heartbeat, or start if there was none, is older than the grace period.

    A server that was down received no heartbeats, so its own start counts as one.
    """
    last_sign = sa.func.coalesce(trial_heartbeats.c.heartbeat, trials.c.datetime_start)
    query = (
        sa.select(trials.c.trial_id)
        .outerjoin(trial_heartbeats, trial_heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING")
    )
    if connection.dialect.name == "sqlite":
        return query.where(last_sign < sa.func.strftime(SQLITE_TIME, "now", f"-{GRACE_PERIOD_SECS} seconds"))
    oldest: sa.ColumnElement[Any] = sa.literal_column(
        f"timezone('utc', now()) - interval '{GRACE_PERIOD_SECS} seconds'"
    )
    started: sa.ColumnElement[Any] = sa.literal_column("timezone('utc', pg_postmaster_start_time())")
    return query.where(last_sign < oldest, started < oldest)


def holds(connection: sa.Connection, chosen: sa.Select[Any]) -> list[Hold]:
    """The holds of the trials whose trial_id a query selects."""
    token = trial_system_attributes.c
    found = chosen.subquery()
    query = sa.select(found.c.trial_id, token.value_json).outerjoin(
        trial_system_attributes, (token.trial_id == found.c.trial_id) & (token.key == TOKEN_KEY)
    )
    return [Hold(trial_id, json.loads(text) if text else None) for trial_id, text in connection.execute(query)]
