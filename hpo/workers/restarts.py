"""When a worker that died is started again, and when a launch is given up; the same for all launchers."""

import signal
from dataclasses import dataclass

from hpo.errors import InputError, StorageError, WorkerError
from hpo.log import text_of

RESTART_SECS = (1, 2, 5, 10)
"""Wait before a restart, by how often in a row the worker died without having taken a trial. After the last one, the
launch is given up.
"""


@dataclass(frozen=True)
class Death:
    """How a worker ended.

    code: its exit code, negative for the signal that killed it, None if it went with its machine; last_line: of its
    log, which is the reason if it ended with an error; out_of_memory: whether it was killed since memory ran out; log:
    where to read more.
    """

    code: int | None
    last_line: str
    log: str
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.out_of_memory:
            return "was killed, since memory ran out"
        if self.code is None:
            return f"was lost: {self.last_line}"
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}: {self.reason}"

    @property
    def reason(self) -> str:
        return text_of(self.last_line).removeprefix("hpo: ")


@dataclass
class Restarts:
    """Of one worker. number: from 1; vain_starts: how often in a row it died without having taken a trial."""

    number: int
    vain_starts: int = 0

    def secs_until_next(self, death: Death, had_taken_a_trial: bool) -> float:
        """How long to wait before the worker is started again. Raises InputError if it rejected its input, WorkerError
        if it cannot work here or has died too often without taking a trial.
        """
        if death.code == InputError.exit_code:
            raise InputError(death.reason)
        if death.code == WorkerError.exit_code:
            raise WorkerError(death.reason)
        if had_taken_a_trial:
            self.vain_starts = 0
        elif death.code != StorageError.exit_code:  # an unreachable database is not the worker's fault
            self.vain_starts += 1
        if self.vain_starts == len(RESTART_SECS):
            raise WorkerError(
                f"worker {self.number} cannot start: {self.vain_starts} times in a row it {death} "
                f"(its log: {death.log})"
            )
        return RESTART_SECS[self.vain_starts]

    def told(self, death: Death, secs: float) -> str:
        """A line for the user."""
        return f"worker {self.number} {death}; it starts again in {secs:g} s (its log: {death.log})"
