"""Who holds a running trial: a claim comes with a token, and whatever its worker writes later is conditional on it.

So a worker that was taken for dead, or whose answer from the database was lost while others went on, changes nothing of
what is another's by now: not even in the same trial, which may have been paused and resumed since.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.search.sql import attributes
from hpo.search.sql.tables import trial_system_attributes, trials

TOKEN_KEY = "hpo:claim"  # noqa: S105 (no password)


class TrialLost(BaseException):
    """The trial is no longer this worker's; the text says why.

    Not an Exception: the worker's own affair, which no objective may take for a failure of its own.
    """


class TakenOver(TrialLost):
    """Another worker has it, or has given it back."""

    def __init__(self) -> None:
        super().__init__("another worker has taken it over")


class TrialDeleted(TrialLost):
    """Nobody has it any more."""

    def __init__(self) -> None:
        super().__init__("it was deleted")


@dataclass(frozen=True)
class Hold:
    """A running trial, and the token of whoever claimed it; None if that was a version of hpo without tokens."""

    trial_id: int
    token: str | None


def new_token() -> str:
    """Unlike any other."""
    return secrets.token_hex(8)


def write_token(connection: sa.Connection, hold: Hold) -> None:
    attributes.write(connection, trial_system_attributes, hold.trial_id, {TOKEN_KEY: hold.token})


def token_of(connection: sa.Connection, trial_id: int) -> str | None:
    """Of the last one who claimed the trial."""
    token: str | None = attributes.read(connection, trial_system_attributes, trial_id, TOKEN_KEY)
    return token


def lock_held(connection: sa.Connection, hold: Hold) -> Any:
    """The study_id and number of a running trial, locked until the transaction ends; on SQLite the whole transaction
    has the lock. Raises TrialLost.
    """
    t = trials.c
    query = sa.select(t.study_id, t.number, t.state).where(t.trial_id == hold.trial_id)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise TrialDeleted
    if row.state != "RUNNING" or token_of(connection, hold.trial_id) != hold.token:  # a statement of its own, which
        raise TakenOver  # sees what others committed while this one waited
    return row
