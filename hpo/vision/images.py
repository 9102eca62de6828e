"""Image sets as memory-mapped uint8 arrays: decoded once a machine under a lock, then opened in milliseconds by every
worker.

A cache folder appears by one rename when it is whole, so that a build that was killed is never mistaken for a
finished one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hpo.errors import DataError
from hpo.spec import DataSpec
from hpo.vision.download import TINY_IMAGENET_MD5, download_tiny_imagenet
from hpo.vision.sources import Listing, Tree, list_digits, list_image_folder, list_tiny_imagenet, open_tree
from hpo.vision.splits import stratified_split

CACHE_FORMAT = 2
TINY_IMAGENET_SIZE = 64
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""


@dataclass(frozen=True)
class Split:
    """Some images of an image set.

    pixels: uint8, (all images of the array, height, width, 3), memory-mapped; rows: int64, the positions that belong
    to this split; labels: int64, one a row; keys: int64, one a row, a number that is the same for an image in every
    split and process, from which its perturbations are seeded.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class ImageSet:
    """train: what trials learn from; tuning: what scores them; test: locked, for the final report alone."""

    train: Split
    tuning: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of all pixels, labels and class names, whatever the split."""


def load_images(data: DataSpec, image_size: int, seed: int, progress: Progress | None = None) -> ImageSet:
    """Opens the images of a study, building the cache when there is none.

    Images of TinyImageNet keep their 64 px; those of other sources are stored at `image_size`. Raises DataError.
    """
    folder = prepare_images(data, image_size, progress)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    pixels, labels = {}, {}
    for part in ("train", "test"):
        pixels[part] = np.load(folder / f"{part}_pixels.npy", mmap_mode="r")
        labels[part] = np.load(folder / f"{part}_labels.npy")
    try:
        kept, tuning = stratified_split(labels["train"], data.validation_fraction, seed)
    except ValueError as error:
        raise DataError(
            f"data.validation_fraction: no tuning images can be split from the training images: {error}"
        ) from None
    if data.images_per_class is not None:
        kept = _limit_per_class(labels["train"], kept, data.images_per_class, seed)
    first_test_key = len(labels["train"])

    def split(part: str, rows: NDArray[np.int64]) -> Split:
        return Split(pixels[part], rows, labels[part][rows], rows + (first_test_key if part == "test" else 0))

    return ImageSet(
        train=split("train", kept),
        tuning=split("train", tuning),
        test=split("test", np.arange(len(labels["test"]))),
        classes=tuple(meta["classes"]),
        fingerprint=meta["fingerprint"],
    )


def prepare_images(data: DataSpec, image_size: int, progress: Progress | None = None) -> Path:
    """The folder of the decoded images; builds it first if need be. Needs no PyTorch. Raises DataError."""
    root = data_root(data)
    try:
        (root / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.root: {root} cannot be used: {error.strerror}; set data.root or HPO_DATA_ROOT") from None
    size = TINY_IMAGENET_SIZE if data.name == "tiny-imagenet" else image_size
    archive = _archive(data, root)
    identity = json.dumps([CACHE_FORMAT, data.name, size, _identity(data, archive)])
    folder = root / "images" / f"{data.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not (folder / "meta.json").exists():
        with FileLock(root / "images" / ".lock"):
            if not (folder / "meta.json").exists():
                _build(_list(data, archive, root, progress), size, folder, progress)
    return folder


def data_root(data: DataSpec) -> Path:
    """Where this machine keeps its images: HPO_DATA_ROOT, else data.root."""
    return Path(os.environ.get("HPO_DATA_ROOT") or data.root).expanduser().absolute()


def _archive(data: DataSpec, root: Path) -> Path | None:
    """data.archive, or the file or folder of the same name below this machine's own HPO_DATA_ROOT."""
    if data.archive is None:
        return None
    archive = Path(data.archive).expanduser()
    own = root / archive.name
    return own if not archive.exists() and own.exists() else archive


def _identity(data: DataSpec, archive: Path | None) -> Any:
    """What tells one source from another without reading its images: paths, sizes and times of change."""
    if archive is None:
        return "scikit-learn" if data.name == "digits" else TINY_IMAGENET_MD5
    try:
        if archive.is_dir():
            stats = sorted((str(path), path.stat()) for path in archive.rglob("*"))
            listing = repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
            return hashlib.sha256(listing.encode()).hexdigest()
        stat = archive.stat()
    except FileNotFoundError:
        raise DataError(f"data.archive: {archive} does not exist; give a zip or a folder") from None
    except OSError as error:
        raise DataError(f"data.archive: {archive} cannot be read: {error.strerror}") from None
    return [str(archive.resolve()), stat.st_size, stat.st_mtime_ns]


def _list(data: DataSpec, archive: Path | None, root: Path, progress: Progress | None) -> Listing:
    if data.name == "digits":
        return list_digits()
    tree: Tree = open_tree(archive or download_tiny_imagenet(root, progress))
    return list_tiny_imagenet(tree) if data.name == "tiny-imagenet" else list_image_folder(tree)


def _build(listing: Listing, size: int, folder: Path, progress: Progress | None) -> None:
    """Decodes everything into a folder of another name, then renames it. The caller holds the lock."""
    for abandoned in folder.parent.glob(f".building-{folder.name}-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f".building-{folder.name}-", dir=folder.parent))
    try:
        digest = hashlib.sha256(json.dumps(listing.classes).encode())
        total = len(listing.train) + len(listing.test)
        done = 0
        for part, entries in (("train", listing.train), ("test", listing.test)):
            labels = np.array([label for _, label in entries], dtype=np.int64)
            np.save(building / f"{part}_labels.npy", labels)
            pixels = np.lib.format.open_memmap(
                building / f"{part}_pixels.npy",
                mode="w+",
                dtype=np.uint8,
                shape=(len(entries), size, size, 3),
            )
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                paths = [path for path, _ in entries]
                for row, image in enumerate(pool.map(lambda path: _decode(listing, path, size), paths)):
                    pixels[row] = image
                    done += 1
                    if progress and (done % 500 == 0 or done == total):
                        progress("decoding images", done, total)
            pixels.flush()
            digest.update(labels.tobytes())
            digest.update(pixels.data)
        meta = {
            "classes": listing.classes,
            "fingerprint": digest.hexdigest(),
            "source": listing.where,
            "size": size,
        }
        (building / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        building.chmod(0o755)  # mkdtemp's folders are private; other users of this machine may share the cache
        building.rename(folder)
    except OSError as error:
        raise DataError(f"data.root: cannot write to {folder.parent}: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _decode(listing: Listing, path: str, size: int) -> NDArray[np.uint8]:
    """uint8 (size, size, 3); grey becomes RGB; another size is scaled and cropped to its centre."""
    try:
        with listing.open_image(path) as image:
            rgb = image.convert("RGB")
    except Exception as error:  # Pillow raises whatever its decoders do: OSError, SyntaxError, struct.error, ...
        reason = str(error).split("\n")[0] if not isinstance(error, UnidentifiedImageError) else "not an image"
        raise DataError(f"data.archive: {listing.where}: {path} cannot be decoded: {reason}") from None
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _limit_per_class(labels: NDArray[np.int64], rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many random rows of each class, in ascending order."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_class = [shuffled[labels[shuffled] == label][:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(by_class))
