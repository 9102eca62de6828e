"""Fencing tokens: each claim of a trial comes with a token, and every later write of the worker is conditional on it.

A worker that was presumed dead, or that lost an answer from the database while others went on, thus cannot change a
trial that now belongs to another worker, not even the same trial after it was paused and resumed.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.search.sql import attributes
from hpo.search.sql.tables import trial_system_attributes, trials

TOKEN_KEY = "hpo:claim"  # noqa: S105 (no password)


class TrialLost(BaseException):
    """The trial no longer belongs to this worker; the message says why.

    Not an Exception, so that no objective handles it as an error of its own.
    """


class TakenOver(TrialLost):
    """Another worker has taken the trial or given it back."""

    def __init__(self) -> None:
        super().__init__("another worker has taken it over")


class TrialDeleted(TrialLost):
    """The trial was deleted."""

    def __init__(self) -> None:
        super().__init__("it was deleted")


@dataclass(frozen=True)
class Hold:
    """A running trial and the token of its claim; None for versions of hpo without tokens."""

    trial_id: int
    token: str | None


def new_token() -> str:
    """A random, unique token."""
    return secrets.token_hex(8)


def write_token(connection: sa.Connection, hold: Hold) -> None:
    attributes.write(connection, trial_system_attributes, hold.trial_id, {TOKEN_KEY: hold.token})


def token_of(connection: sa.Connection, trial_id: int) -> str | None:
    """The token of the latest claim of the trial."""
    token: str | None = attributes.read(connection, trial_system_attributes, trial_id, TOKEN_KEY)
    return token


def lock_held(connection: sa.Connection, hold: Hold) -> Any:
    """Locks a running trial until the transaction ends (SQLite locks the whole database), and returns its study_id and
    number. Raises TrialLost.
    """
    t = trials.c
    query = sa.select(t.study_id, t.number, t.state).where(t.trial_id == hold.trial_id)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise TrialDeleted
    if row.state != "RUNNING" or token_of(connection, hold.trial_id) != hold.token:  # a separate statement, which
        raise TakenOver  # sees what others committed while this one waited
    return row
