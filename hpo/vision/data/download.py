"""Downloads the official TinyImageNet: resumes after an interruption, discards a file with the wrong size or MD5."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from hpo.errors import DataError
from hpo.vision.data.disk import DISK_ERRORS, check_room, locked, unusable

TINY_IMAGENET_ZIP = "tiny-imagenet-200.zip"
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
TINY_IMAGENET_BYTES = 248_100_043
CHUNK_BYTES = 1 << 20
TIMEOUT_SECS = 60


def download_tiny_imagenet(
    root: Path,
    progress: Callable[[str, int, int], None] | None = None,
    url: str = TINY_IMAGENET_URL,
    size: int = TINY_IMAGENET_BYTES,
    md5: str = TINY_IMAGENET_MD5,
) -> Path:
    """The path of the complete, verified zip in `root`.

    Raises DataError if the download fails; what has arrived is kept, and the next call resumes.
    """
    target = root / TINY_IMAGENET_ZIP
    if target.exists():  # renamed when complete, so no lock is needed: the folder may be read-only
        return target
    with locked(root / f"{TINY_IMAGENET_ZIP}.lock"):
        if target.exists():
            return target
        part = target.with_suffix(".part")
        try:
            have = part.stat().st_size if part.exists() else 0
            check_room(root, size - have, "the rest of TinyImageNet's zip")
            _fetch(url, part, size, progress)
            if part.stat().st_size != size or _md5(part) != md5:
                part.unlink()
                raise DataError(
                    f"data: {url} is not the expected file ({size} bytes, md5 {md5}); it was removed, try again"
                )
            part.rename(target)
        except OSError as error:
            if error.errno in DISK_ERRORS and not isinstance(error, urllib.error.URLError):
                raise unusable(root, error) from None
            reason = getattr(error, "reason", None) or error
            raise DataError(
                f"data: {url} could not be downloaded ({reason}); try again to resume, or give data.archive"
            ) from None
    return target


def _fetch(url: str, part: Path, size: int, progress: Callable[[str, int, int], None] | None) -> None:
    """Appends what is missing to `part`; starts over if the server cannot resume. Raises OSError."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 (a constant http URL, checked by md5)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECS) as response:  # noqa: S310
        resumed = response.status == 206
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                if have > size:
                    raise OSError(f"more than the expected {size} bytes")
                if progress:
                    progress("downloading TinyImageNet", have, size)
    if have < size:
        raise OSError(f"the connection ended after {have} of {size} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
