"""Locks and room in data.root. What is wrong there is said in one line: it is often a network's file system, a full
disk, or another user's folder.
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
"""Of writing: they are no network's."""


def data_root(data: DataSpec) -> Path:
    """Where this machine keeps its images: HPO_DATA_ROOT, else data.root."""
    return Path(os.environ.get("HPO_DATA_ROOT") or data.root).expanduser().absolute()


def unusable(root: Path, error: OSError) -> DataError:
    """What to raise when something cannot be written below `root`."""
    if error.errno in NO_SPACE:
        return DataError(f"no space in data.root: {root}: {error.strerror}; set data.root or HPO_DATA_ROOT")
    return DataError(f"data.root: {root} cannot be used: {error.strerror or error}; set data.root or HPO_DATA_ROOT")


def check_room(root: Path, needed: int, what: str) -> None:
    """Raises DataError if `root` has not so many bytes free: said before the work, not in the middle of it."""
    disk = shutil.disk_usage(root)
    if disk.total and needed > disk.free:  # some network's file systems say 0 of everything
        raise DataError(
            f"no space in data.root: {root} has {disk.free / 1e6:,.1f} MB free, {what} need {needed / 1e6:,.1f} MB; "
            "set data.root or HPO_DATA_ROOT"
        )


def remove_decoded_images(root: Path) -> tuple[int, int]:
    """Removes what `load_images` made below `root`, also what builds left that were killed; how many image sets, and
    bytes. Processes that have them open go on with them. Waits for one that is being built. Raises DataError.
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
    """One process of this machine at a time; the system takes the lock from a process that ends, however it ends.

    Not filelock's FileLock, some versions of which fall back on a mere file where locks are unknown, and wait for ever
    for one that was left there. Raises DataError where files cannot be locked.
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
    """Another user's lock file need not be writable to be locked."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
