"""Decides how the worker handles an exception in a trial; a pure function of the exception."""

import errno
from dataclasses import dataclass
from typing import Literal

from hpo.errors import InputError, MachineError, StorageError
from hpo.search.sql.outages import is_outage

RETRY_SECS = (1, 2, 5, 10, 30, 60, 60, 60, 120, 120, 120)
"""Waits before a trial is retried after a temporary error; about ten minutes in total."""
PASSING = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EIO", "ENOSPC", "EDQUOT", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNREFUSED"),
        *("ECONNRESET", "ECONNABORTED", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}
"""Error codes of an unreachable file system or network, or of a full disk."""


@dataclass(frozen=True)
class Decision:
    """retry: the same worker continues the trial after `wait_secs`; score worst: the trial finishes with the worst
    score, so that the sampler learns from it; leave: this machine is at fault, so the trial is given back to others;
    fail: the trial fails, and another configuration is tried.
    """

    action: Literal["retry", "score worst", "leave", "fail"]
    wait_secs: float = 0


def decide(error: BaseException, attempt: int) -> Decision:
    """What to do about an error in the given attempt, counted from 0."""
    if isinstance(error, MemoryError):
        return Decision("score worst")
    if isinstance(
        error, InputError | StorageError | MachineError
    ):  # of this machine's images, weights, network or device
        return Decision("leave")
    if is_passing(error):
        return Decision("retry", RETRY_SECS[attempt]) if attempt < len(RETRY_SECS) else Decision("leave")
    return Decision("fail")


def in_words(error: BaseException) -> str:
    """The error in one line; for a file, only its name and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return repr(error)


def is_passing(error: BaseException | None) -> bool:
    """Whether the error or one of its causes is temporary: an unreachable file system, network or database."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or is_outage(error):
            return True
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__
    return False
