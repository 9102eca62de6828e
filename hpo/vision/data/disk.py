"""data.root: its path, locks and free space. Failures become one-line errors: it is often on a network file
system, a full disk, or in another user's folder.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo.errors import DataError
from hpo.study_file.images import DataSpec

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*NO_SPACE, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of writing to a disk, as opposed to those of a network."""


def data_root(data: DataSpec) -> Path:
    """The folder for images on this machine: HPO_DATA_ROOT, otherwise data.root."""
    return Path(os.environ.get("HPO_DATA_ROOT") or data.root).expanduser().absolute()


def on_this_machine(path: str, root: str | Path = "~/.cache/hpo") -> Path:
    """A file or folder that a study names; where it is not, what has its name in HPO_DATA_ROOT, otherwise in `root`."""
    given = Path(path).expanduser()
    own = Path(os.environ.get("HPO_DATA_ROOT") or root).expanduser() / given.name
    return own if not os.path.exists(given) and os.path.exists(own) else given  # False without permission


def unusable(root: Path, error: OSError) -> DataError:
    """The error to raise when something below `root` cannot be written."""
    if error.errno in NO_SPACE:
        return DataError(f"no space in data.root: {root}: {error.strerror}; set data.root or HPO_DATA_ROOT")
    return DataError(f"data.root: {root} cannot be used: {error.strerror or error}; set data.root or HPO_DATA_ROOT")


def check_room(root: Path, needed: int, what: str) -> None:
    """Raises DataError if fewer than `needed` bytes are free in `root`, before the work rather than halfway."""
    disk = shutil.disk_usage(root)
    if disk.total and needed > disk.free:  # some network file systems report 0 for everything
        raise DataError(
            f"no space in data.root: {root} has {disk.free / 1e6:,.1f} MB free, {what} need {needed / 1e6:,.1f} MB; "
            "set data.root or HPO_DATA_ROOT"
        )


def remove_decoded_images(root: Path) -> tuple[int, int]:
    """Removes all decoded images below `root`, including remains of killed builds; returns (image sets, bytes) removed.

    Processes that have them open keep working with them. Waits for a build in progress. Raises DataError.
    """
    images = root / "images"
    if not images.is_dir():
        return 0, 0
    count, size = 0, 0
    with locked(images / ".lock"):
        try:
            for folder in images.iterdir():
                if (folder / "meta.json").is_file() or folder.name.startswith(".building-"):
                    size += sum(file.stat().st_size for file in folder.iterdir())
                    count += 1
                    shutil.rmtree(folder)
        except OSError as error:
            raise unusable(root, error) from None
    return count, size


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Held by one process on this machine at a time; the system releases it when the process ends, however it ends.

    Raises DataError where files cannot be locked. Not filelock's FileLock: where locks are unsupported, some versions
    fall back to testing for a file, and wait forever for one that a dead process left behind.
    """
    try:
        handle = _open(file)
    except OSError as error:
        raise unusable(file.parent, error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"data.root: {file.parent} cannot be locked: {error.strerror or error}; "
                "set HPO_DATA_ROOT to a folder on a disk of this machine"
            ) from None
        yield
    finally:
        os.close(handle)


def _open(file: Path) -> int:
    """Opens the lock file; another user's can be locked even if it is read-only."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
