"""The cache of decoded images: uint8 arrays in files, built once on each machine under a lock.

A cache folder appears by one rename when it is complete, so that a build that was killed is never mistaken for a
finished one.
"""

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.decoding import named_with_reasons, write_pixels
from hpo.vision.data.digits import list_digits
from hpo.vision.data.disk import check_room, data_root, locked, on_this_machine, unusable
from hpo.vision.data.download import TINY_IMAGENET_MD5, download_tiny_imagenet
from hpo.vision.data.image_folder import list_image_folder
from hpo.vision.data.listing import Listing
from hpo.vision.data.tiny_imagenet import list_tiny_imagenet
from hpo.vision.data.trees import open_tree, printable, walk

CACHE_FORMAT = 4
"""Incremented whenever the pixels or the files of the cache change."""
TINY_IMAGENET_SIZE = 64
LOOKED_AT = 10_000
"""In a source with more files, changes are detected by file names and folder times alone, without a stat of each."""
Progress = Callable[[str, int, int], None]
"""Called with (description of the work, number done, total)."""


def prepare_images(data: DataSpec, image_size: int, progress: Progress | None = None) -> Path:
    """The folder with the decoded images, built first if necessary. Does not need PyTorch. Raises DataError.

    A changed source is decoded again. For a zip, its size and modification time count; for a folder, files that were
    added, removed or renamed and, if it has at most LOOKED_AT files, the size and modification time of each. A file
    overwritten in place in a larger folder goes unnoticed; `touch` a folder in it to have it decoded again.
    """
    root = data_root(data)
    size = TINY_IMAGENET_SIZE if data.name == "tiny-imagenet" else image_size
    archive = on_this_machine(data.archive, root) if data.archive is not None else None
    identity = json.dumps([CACHE_FORMAT, data.name, size, _identity(data, archive)])
    folder = root / "images" / f"{data.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    done = folder / "meta.json"
    try:
        if done.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(root, error) from None
    with locked(folder.parent / ".lock"):
        if not done.exists():
            _build(_list(data, archive, root, progress), size, folder, data, progress)
    return folder


def _identity(data: DataSpec, archive: Path | None) -> Any:
    """What distinguishes one source from another without reading images: paths, sizes and modification times."""
    if archive is None:
        return "scikit-learn" if data.name == "digits" else TINY_IMAGENET_MD5
    try:
        where = str(archive.resolve())
        if not archive.is_dir():
            stat = archive.stat()
            return [where, stat.st_size, stat.st_mtime_ns]
        folders = walk(archive)
        digest = hashlib.sha256()
        each = sum(len(folder.files) for folder in folders) <= LOOKED_AT
        for folder in folders:
            files = [(name, *_size_and_time(archive / folder.path / name)) for name in folder.files] if each else folder
            digest.update(repr((folder.path, folder.changed_ns, files)).encode())
    except FileNotFoundError:
        raise DataError(f"data.archive: {printable(str(archive))} does not exist; give a zip or a folder") from None
    except OSError as error:
        which = printable(str(error.filename or archive))
        raise DataError(f"data.archive: {which} cannot be read: {error.strerror}") from None
    return [where, digest.hexdigest()]


def _size_and_time(file: Path) -> tuple[int, int]:
    """Bytes and modification time in nanoseconds; (0, 0) for a broken link."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _list(data: DataSpec, archive: Path | None, root: Path, progress: Progress | None) -> Listing:
    if data.name == "digits":
        return list_digits()
    tree = open_tree(archive or download_tiny_imagenet(root, progress), "data.archive")
    return list_tiny_imagenet(tree) if data.name == "tiny-imagenet" else list_image_folder(tree)


def _build(listing: Listing, size: int, folder: Path, data: DataSpec, progress: Progress | None) -> None:
    """Decodes all images into a temporary folder, then renames it. The caller holds the lock. Raises DataError."""
    root = folder.parent.parent
    for abandoned in folder.parent.glob(f".building-{folder.name}-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    total = len(listing.train) + len(listing.test)
    building = None
    try:
        check_room(root, total * size * size * 3, f"{total:,} images of {size} px")
        building = Path(tempfile.mkdtemp(prefix=f".building-{folder.name}-", dir=folder.parent))
        labels: dict[str, NDArray[np.int64]] = {}
        bad: dict[str, str] = {}
        count = itertools.count(1)

        def tell() -> None:
            done = next(count)
            if progress and (done % 500 == 0 or done == total):
                progress("decoding images", done, total)

        for part, entries in (("train", listing.train), ("test", listing.test)):
            with (building / f"{part}_pixels.bin").open("wb") as file:
                labels[part] = write_pixels(listing, entries, size, file, bad, tell)
            np.save(building / f"{part}_labels.npy", labels[part])
        check_bad_images(data, listing.where, bad, total)
        for part, entries in (("train", listing.train), ("test", listing.test)):
            for label in sorted({label for _, label in entries}.difference(labels[part].tolist())):
                name = printable(listing.classes[label])
                raise DataError(f"{listing.where}: no {part} image of class {name} can be decoded")
        meta = {
            "classes": listing.classes,
            "fingerprint": _fingerprint(building, listing.classes, labels, size),
            "source": listing.where,
            "size": size,
            "images": total,
            "bad": bad,
            "left_out": listing.left_out,
            "words": listing.words,
        }
        (building / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        building.chmod(0o755)  # mkdtemp makes it private, but other users may share the cache
        building.rename(folder)
    except OSError as error:
        raise unusable(root, error) from None
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def open_pixels(folder: Path, part: str, count: int, size: int) -> NDArray[np.uint8]:
    return np.memmap(folder / f"{part}_pixels.bin", np.uint8, "r", shape=(count, size, size, 3))


def _fingerprint(folder: Path, classes: tuple[str, ...], labels: Mapping[str, NDArray[np.int64]], size: int) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in ("train", "test"):
        digest.update(labels[part].tobytes())
        digest.update(open_pixels(folder, part, len(labels[part]), size).data)
    return digest.hexdigest()


def check_bad_images(data: DataSpec, where: str, bad: Mapping[str, str], total: int) -> None:
    """Raises DataError if there are more undecodable images than the study allows.

    bad: the reason for each, by path; total: number of all images.
    """
    if not bad or (data.bad_images == "skip" and len(bad) <= data.max_bad_share * total):
        return
    if data.bad_images == "skip":
        advice = f"that is more than data.max_bad_share = {data.max_bad_share:g} of all allows"
    else:
        advice = "mend or remove them; data.bad_images = 'skip' leaves them out"
    raise DataError(f"{where}: {named_with_reasons(bad, total)}; {advice}")
