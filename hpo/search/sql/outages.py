"""Waits while the database is away: a server that restarts, a network that is cut, a lock that another holds.

Only operations that may be said twice are given to `outlast`: when a connection is lost in the middle of a commit,
nobody knows whether it took place.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from hpo.errors import StorageError

PATIENCE_SECS = 3600.0
FIRST_WAIT_SECS, LONGEST_WAIT_SECS = 0.2, 10.0
SQLSTATES = ("08", "25006", "25P03", "40", "53", "55P03", "57P")
"""PostgreSQL's errors that pass: connection, read-only (a standby that will take over), idle in a transaction,
deadlock, too many connections, lock, restart.
"""
SQLITE_ERRORS = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_FULL")

T = TypeVar("T")
_last_outage = float("-inf")
_last_look: float | None = None


def outlast(operation: Callable[[], T], say: Callable[[str], None], patience_secs: float = PATIENCE_SECS) -> T:
    """What `operation` gives, tried again while the database is away. Raises StorageError when patience ends."""
    global _last_outage  # noqa: PLW0603 (one process has one database)
    began = time.monotonic()
    wait = FIRST_WAIT_SECS
    said = False
    while True:
        try:
            result = operation()
        except (DBAPIError, PoolTimeoutError) as error:
            if not is_outage(error):
                raise
            _last_outage = time.monotonic()
            if _last_outage - began > patience_secs:
                raise StorageError(f"the database was away for {patience_secs:g} s: {first_line(error)}") from error
            if not said and wait > 1:
                say(f"the database is away, waiting for it: {first_line(error)}")
                said = True
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECS)
        else:
            if said:
                say(f"the database is back after {time.monotonic() - began:.0f} s")
            return result


def is_outage(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if (name := getattr(error.orig, "sqlite_errorname", None)) is not None:
        return str(name).startswith(SQLITE_ERRORS)
    state = getattr(error.orig, "sqlstate", None)
    return str(state).startswith(SQLSTATES) if state else isinstance(error, OperationalError)


def secs_since_outage() -> float:
    """How long this process has had its database without a break; infinite if it never lost it."""
    return time.monotonic() - _last_outage


def look_at_the_clock(slept_secs: float) -> None:
    """Called every few seconds; after `slept_secs` this process must have been asleep (a laptop's lid, SIGSTOP). Others
    that slept too look dead until they have beaten again: as after an outage, nobody is to be given up at once.
    """
    global _last_look, _last_outage  # noqa: PLW0603
    now = time.time()
    if _last_look is not None and now - _last_look > slept_secs:
        _last_outage = time.monotonic()
    _last_look = now


def first_line(error: BaseException) -> str:
    """The database's own words, without SQL and parameters."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
