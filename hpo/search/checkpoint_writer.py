"""A trial's checkpoints, written beside its next step.

After a step what it needs is copied aside, which is quick; a thread makes a file of it while the next step runs. Where
steps are short not each of them leaves a checkpoint: a network of 11 million weights is one of 135 MB. The last step is
always kept when a trial is left between two, as when it is paused; before that, a checkpoint that cannot be written (a
full disk) does not keep the trial from going on.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

MIN_SECS = 1.0
"""Between two checkpoints."""
MAX_SHARE = 0.05
"""Of the time, for writing: with slow storage checkpoints come more rarely."""

Take = Callable[[], Callable[[], None]]
"""Copies what is needed aside, and returns what will write it."""


class CheckpointWriter:
    """The checkpoints of one trial."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[float] | None = None
        self._offered: Take | None = None
        self._started = time.monotonic()
        self.pause_secs = MIN_SECS

    def offer(self, take: Take) -> None:
        """After a step: writes a checkpoint if it is time for one, else remembers that there could be one."""
        self._offered = take
        if time.monotonic() - self._started >= self.pause_secs and (self.writing is None or self.writing.done()):
            self._start()

    def move_on(self) -> None:
        """The next step begins: what was offered is no longer to be had."""
        self._offered = None

    def flush(self) -> None:
        """The trial is left: writes what was offered last, and waits for it. Raises OSError."""
        if self._offered is not None:
            self._start()
        self._finish(needed=True)

    def close(self) -> None:
        """Waits for what is being written; what comes of it matters to nobody any more."""
        self._thread.shutdown()

    def _start(self) -> None:
        self._finish()
        take, self._offered = self._offered, None
        if take is not None:
            self._started = time.monotonic()
            self.writing = self._thread.submit(_timed, take())

    def _finish(self, needed: bool = False) -> None:
        writing, self.writing = self.writing, None
        try:
            if writing is not None:
                self.pause_secs = max(MIN_SECS, writing.result() / MAX_SHARE)
        except OSError:
            if needed:
                raise


def _timed(write: Callable[[], None]) -> float:
    started = time.monotonic()
    write()
    return time.monotonic() - started
