"""Files that a study's workers share: whoever needs one first makes it, the others on its machine wait and read it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from hpo.doors.objective import Store
from hpo.errors import DataError
from hpo.vision.data.disk import locked
from hpo.vision.training.checkpoints import checkpoint_as_bytes, checkpoint_from_bytes


def made_once(
    store: Store,
    name: str,
    identity: str,
    lock: Path,
    make: Callable[[], Mapping[str, Tensor]],
    about: Mapping[str, str] | None = None,
) -> Mapping[str, Tensor]:
    """The tensors in a file of the store, by name; made and written if there is none with this identity. Where it
    cannot be kept, each worker makes its own.

    lock: a file on this machine's disk; about: text by name that is written beside the identity.
    """
    with _one_on_this_machine(lock):
        content = None
        with contextlib.suppress(OSError):
            content = store.read(name)
        kept = checkpoint_from_bytes(content) if content else None
        if kept is not None and kept.header.get("identity") == identity:
            return kept.tensors
        tensors = make()
        with contextlib.suppress(OSError):
            store.write(name, checkpoint_as_bytes(tensors, {"identity": identity, **(about or {})}))
        return tensors


@contextlib.contextmanager
def _one_on_this_machine(file: Path) -> Iterator[None]:
    """Others wait; not where files cannot be locked: then each does the same for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(DataError):
            stack.enter_context(locked(file))
        yield
