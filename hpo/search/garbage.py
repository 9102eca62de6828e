"""When Python looks for garbage: rarely while a worker makes much that stays, so that its first trial starts soon."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = 100_000
"""Objects that are made between two looks; Python itself looks after 700 or 2,000."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Else the collector looks through all that is read, and that PyTorch's import made, again and again. Training
    needs it as often as usual, for whole networks that a trial leaves behind.
    """
    usual = gc.get_threshold()
    gc.set_threshold(RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
