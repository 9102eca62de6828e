"""Writes a trial's checkpoints in the background.

After a step, the state is copied, which is quick; a thread writes the copy to a file while the next step runs. If steps
are short, not every step is written: the checkpoint of a network with 11 million weights takes 135 MB. When a trial is
paused or interrupted between two steps, the last step is always written. Before that, a failed write (a full disk) does
not stop the trial.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

MIN_SECS = 1.0
"""Minimum time between two checkpoints."""
MAX_SHARE = 0.05
"""Maximum share of the time spent on writing; with slow storage, checkpoints become rarer."""

Take = Callable[[], Callable[[], None]]
"""Copies the state, and returns a function that writes the copy."""


class CheckpointWriter:
    """Writes the checkpoints of one trial."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[float] | None = None
        self._offered: Take | None = None
        self._started = time.monotonic()
        self.pause_secs = MIN_SECS

    def offer(self, take: Take) -> None:
        """Called after a step: starts writing a checkpoint if one is due, otherwise keeps the offer for `flush`."""
        self._offered = take
        if time.monotonic() - self._started >= self.pause_secs and (self.writing is None or self.writing.done()):
            self._start()

    def move_on(self) -> None:
        """Called before the next step: its state will overwrite what was offered."""
        self._offered = None

    def flush(self) -> None:
        """Writes what was offered last, if it was not written yet, and waits for it. Raises OSError."""
        if self._offered is not None:
            self._start()
        self._finish(needed=True)

    def close(self) -> None:
        """Waits for a write in progress and ignores its outcome."""
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
