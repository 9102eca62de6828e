"""Checkpoints that are written beside the training: never of another epoch than they say, never missing where a trial
is left between two.
"""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hpo.search import checkpoint_writer
from hpo.search.checkpoint_writer import CheckpointWriter


class Store:
    """What was copied when, and what was written; writing waits for `gate`."""

    def __init__(self) -> None:
        self.now = 0
        self.written: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False

    def take(self) -> Callable[[], None]:
        epoch = self.now

        def write() -> None:
            assert self.gate.wait(10)
            self.threads.add(threading.current_thread().name)
            if self.fails:
                raise OSError(28, "No space left on device")
            self.written.append(epoch)

        return write


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writer() -> Iterator[CheckpointWriter]:
    made = CheckpointWriter()
    yield made
    made.close()


def train(writer: CheckpointWriter, store: Store, epochs: int) -> None:
    for _ in range(epochs):
        writer.move_on()
        store.now += 1
        writer.offer(store.take)


def test_long_epochs_leave_a_checkpoint_each_written_in_another_thread(
    writer: CheckpointWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "MIN_SECS", 0)
    writer.pause_secs = 0
    for _ in range(3):
        train(writer, store, 1)
        writer.writing.result()  # type: ignore[union-attr]
        time.sleep(0.01)
    assert store.written == [1, 2, 3]
    assert threading.current_thread().name not in store.threads


def test_short_epochs_leave_none_until_the_trial_is_left(writer: CheckpointWriter, store: Store) -> None:
    train(writer, store, 5)
    assert store.written == []
    writer.flush()
    assert store.written == [5]
    writer.flush()
    assert store.written == [5], "once"


def test_what_training_has_gone_on_from_is_not_written(writer: CheckpointWriter, store: Store) -> None:
    train(writer, store, 5)
    writer.move_on()
    store.now += 1  # the weights of half an epoch
    writer.flush()
    assert store.written == []


def test_training_does_not_wait_for_slow_storage_and_what_is_left_then_is_still_the_last_epoch(
    writer: CheckpointWriter, store: Store
) -> None:
    store.gate.clear()
    writer.pause_secs = 0
    train(writer, store, 4)
    assert store.written == []
    threading.Timer(0.3, store.gate.set).start()
    writer.flush()
    assert store.written == [1, 4]


def test_slow_storage_has_fewer_checkpoints(writer: CheckpointWriter) -> None:
    writer.pause_secs = 0
    writer.offer(lambda: lambda: time.sleep(0.2))
    writer.flush()
    assert 0.2 / checkpoint_writer.MAX_SHARE <= writer.pause_secs < 10 / checkpoint_writer.MAX_SHARE


def test_a_full_disk_is_an_error_where_the_checkpoint_is_needed_and_none_at_the_end(
    writer: CheckpointWriter, store: Store
) -> None:
    store.fails = True
    train(writer, store, 1)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    writer.pause_secs = 0
    train(writer, store, 1)
    writer.close()


def test_a_trial_that_is_not_left_goes_on_without_a_checkpoint_until_one_can_be_written(
    writer: CheckpointWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "MIN_SECS", 0)
    writer.pause_secs = 0
    store.fails = True
    for _ in range(3):
        train(writer, store, 1)
        assert isinstance(writer.writing.exception(), OSError)  # type: ignore[union-attr]
        time.sleep(0.01)
    store.fails = False
    train(writer, store, 1)
    writer.flush()
    assert store.written == [4]
