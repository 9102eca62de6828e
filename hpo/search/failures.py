"""What to do about an exception in a trial: a pure decision, which the worker obeys."""

import errno
from dataclasses import dataclass
from typing import Literal

from hpo.errors import InputError, MachineError, StorageError
from hpo.search.sql.outages import is_outage

RETRY_SECS = (1, 2, 5, 10, 30, 60, 60, 60, 120, 120, 120)
"""Waits before a trial is taken up again after something that passes; about ten minutes in all."""
PASSING = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EIO", "ENOSPC", "EDQUOT", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNREFUSED"),
        *("ECONNRESET", "ECONNABORTED", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "EREMOTEIO"),
    )
    if hasattr(errno, name)
}
"""Of a file system or network that was lost, or a disk that is full."""


@dataclass(frozen=True)
class Decision:
    """retry: the same worker takes the trial up again after `wait_secs`; score worst: the trial is finished, so that
    the sampler learns of it; leave: it is this machine's trouble, others may do better; fail: another configuration is
    tried.
    """

    action: Literal["retry", "score worst", "leave", "fail"]
    wait_secs: float = 0


def decide(error: BaseException, attempt: int) -> Decision:
    """What to do about an error in the given attempt, counted from 0."""
    if isinstance(error, MemoryError):
        return Decision("score worst")
    if isinstance(error, InputError | StorageError | MachineError):  # this machine's images, weights, network, device
        return Decision("leave")
    if is_passing(error):
        return Decision("retry", RETRY_SECS[attempt]) if attempt < len(RETRY_SECS) else Decision("leave")
    return Decision("fail")


def in_words(error: BaseException) -> str:
    """The error in a line; of a file its name and the reason, without what programmers want to know."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return repr(error)


def is_passing(error: BaseException | None) -> bool:
    """Whether the error, or what it came from, may be gone later: a lost file system, network or database."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or is_outage(error):
            return True
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__
    return False
