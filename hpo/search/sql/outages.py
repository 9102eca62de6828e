"""Retries while the database is unavailable: a server restarts, the network is down, a lock is held too long.

Operations given to `outlast` must be idempotent: if the connection is lost during a commit, nobody knows whether it
took effect.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from hpo.errors import StorageError

PATIENCE_SECS = 3600.0
FIRST_WAIT_SECS, MAX_WAIT_SECS = 0.2, 10.0
SQLSTATES = ("08", "25006", "25P03", "40", "53", "55P03", "57P")
"""PostgreSQL's temporary errors: connection, read-only (a standby before promotion), idle in a transaction, deadlock,
too many connections, lock, restart.
"""
SQLITE_ERRORS = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_FULL")

T = TypeVar("T")
_last_outage = float("-inf")
_last_look: float | None = None


def outlast(operation: Callable[[], T], say: Callable[[str], None], patience_secs: float = PATIENCE_SECS) -> T:
    """Runs `operation`, retrying while the database is unavailable. Raises StorageError after `patience_secs`."""
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
            wait = min(2 * wait, MAX_WAIT_SECS)
        else:
            if said:
                say(f"the database is back after {time.monotonic() - began:.0f} s")
            return result


def is_outage(error: BaseException) -> bool:
    """Whether the error is temporary, so that the same statement may succeed later."""
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
    """Seconds since this process last lost the database, or was suspended; infinite if never."""
    return time.monotonic() - _last_outage


def detect_suspension(slept_secs: float) -> None:
    """To be called every few seconds: a longer gap than `slept_secs` means that this process was suspended (a closed
    laptop, SIGSTOP). It then counts as an outage, since other workers that were suspended too have sent no heartbeats.
    """
    global _last_look, _last_outage  # noqa: PLW0603
    now = time.time()
    if _last_look is not None and now - _last_look > slept_secs:
        _last_outage = time.monotonic()
    _last_look = now


def first_line(error: BaseException) -> str:
    """The database's own message, without SQL and parameters."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
