"""Image sets as memory-mapped uint8 arrays: decoded once a machine under a lock, then opened in milliseconds by every
worker.

A cache folder appears by one rename when it is whole, so that a build that was killed is never mistaken for a
finished one.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hpo.cores import cores
from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.disk import check_room, locked, unusable
from hpo.vision.data.download import TINY_IMAGENET_MD5, download_tiny_imagenet
from hpo.vision.data.sources import (
    Listing,
    Tree,
    list_digits,
    list_image_folder,
    list_tiny_imagenet,
    open_tree,
    printable,
    walk,
)
from hpo.vision.data.splits import stratified_split

CACHE_FORMAT = 4
"""Raised when pixels or files of the cache become others."""
TINY_IMAGENET_SIZE = 64
LOOKED_AT = 10_000
"""A folder of more files is known by their names and its folders' times of change, without a look at each file."""
NOT_TO_BE_READ = (None, errno.ENOENT, errno.ELOOP, errno.EACCES)
"""Of an image alone (None: Pillow's own errors); others are a disk's or a network's, which may pass."""
NAMED = 10
"""So many bad images are named in an error."""
ORIENTATION = 0x0112
WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps what may tell it."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the EXIF orientation that its camera wrote."""
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
    skipped: tuple[str, ...] = ()
    """Paths of the images that cannot be decoded and were left out, as data.bad_images = "skip" allows."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files in the folders of classes are of types that are not read, by suffix."""


def load_images(data: DataSpec, image_size: int, seed: int, progress: Progress | None = None) -> ImageSet:
    """Opens the images of a study, building the cache when there is none.

    Images of TinyImageNet keep their 64 px; those of other sources are stored at `image_size`. Raises DataError.
    """
    folder = prepare_images(data, image_size, progress)
    pixels, labels = {}, {}
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for part in ("train", "test"):
            labels[part] = np.load(folder / f"{part}_labels.npy")
            pixels[part] = _open_pixels(folder, part, len(labels[part]), meta["size"])
    except OSError as error:
        raise unusable(folder, error) from None
    _check_bad_images(data, meta["source"], meta["bad"], meta["images"])
    try:
        kept, tuning = stratified_split(labels["train"], meta["classes"], data.validation_fraction, seed)
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
        skipped=tuple(meta["bad"]),
        left_out=meta["left_out"],
    )


def prepare_images(data: DataSpec, image_size: int, progress: Progress | None = None) -> Path:
    """The folder of the decoded images; builds it first if need be. Needs no PyTorch. Raises DataError.

    It is built anew when its source has changed: a zip's size or time of change; in a folder, when files came, went or
    were renamed, or, among at most 10,000 files, when one has another size or time. A file that is written over in
    place in a larger folder is not noticed: `touch` a folder to say so.
    """
    root = data_root(data)
    size = TINY_IMAGENET_SIZE if data.name == "tiny-imagenet" else image_size
    archive = _archive(data, root)
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


def data_root(data: DataSpec) -> Path:
    """Where this machine keeps its images: HPO_DATA_ROOT, else data.root."""
    return Path(os.environ.get("HPO_DATA_ROOT") or data.root).expanduser().absolute()


def _archive(data: DataSpec, root: Path) -> Path | None:
    """data.archive, or the file or folder of the same name below this machine's own HPO_DATA_ROOT."""
    if data.archive is None:
        return None
    archive = Path(data.archive).expanduser()
    own = root / archive.name
    return own if not os.path.exists(archive) and os.path.exists(own) else archive  # False where one may not look


def _identity(data: DataSpec, archive: Path | None) -> Any:
    """What tells one source from another without reading its images: paths, sizes and times of change."""
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
    """(0, 0) of a link to nowhere."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _list(data: DataSpec, archive: Path | None, root: Path, progress: Progress | None) -> Listing:
    if data.name == "digits":
        return list_digits()
    tree: Tree = open_tree(archive or download_tiny_imagenet(root, progress))
    return list_tiny_imagenet(tree) if data.name == "tiny-imagenet" else list_image_folder(tree)


def _build(listing: Listing, size: int, folder: Path, data: DataSpec, progress: Progress | None) -> None:
    """Decodes everything into a folder of another name, then renames it. The caller holds the lock."""
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
                labels[part] = _write_pixels(listing, entries, size, file, bad, tell)
            np.save(building / f"{part}_labels.npy", labels[part])
        _check_bad_images(data, listing.where, bad, total)
        for part, entries in (("train", listing.train), ("test", listing.test)):
            for label in sorted({label for _, label in entries}.difference(labels[part].tolist())):
                name = printable(listing.classes[label])
                raise DataError(f"data.archive: {listing.where}: no {part} image of class {name} can be decoded")
        meta = {
            "classes": listing.classes,
            "fingerprint": _fingerprint(building, listing.classes, labels, size),
            "source": listing.where,
            "size": size,
            "images": total,
            "bad": bad,
            "left_out": listing.left_out,
        }
        (building / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        building.chmod(0o755)  # mkdtemp's folders are private; other users of this machine may share the cache
        building.rename(folder)
    except OSError as error:
        raise unusable(root, error) from None
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _write_pixels(
    listing: Listing,
    entries: Sequence[tuple[str, int]],
    size: int,
    file: BinaryIO,
    bad: dict[str, str],
    tell: Callable[[], None],
) -> NDArray[np.int64]:
    """Writes one decoded image after the other, without a memory map, under which a full disk would kill the process.

    Returns their labels, in their order; the others go into `bad`, by path, with the reason.
    """
    labels = []
    pool = ThreadPoolExecutor(max_workers=cores())
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of odd headers
            decoded = pool.map(lambda entry: _decode(listing, entry[0], size), entries)
            for (path, label), image in zip(entries, decoded, strict=True):
                if isinstance(image, str):
                    bad[printable(path)] = image
                else:
                    file.write(image.data)
                    labels.append(label)
                tell()
    finally:
        pool.shutdown(cancel_futures=True)
    return np.array(labels, dtype=np.int64)


def _open_pixels(folder: Path, part: str, count: int, size: int) -> NDArray[np.uint8]:
    return np.memmap(folder / f"{part}_pixels.bin", np.uint8, "r", shape=(count, size, size, 3))


def _fingerprint(folder: Path, classes: tuple[str, ...], labels: Mapping[str, NDArray[np.int64]], size: int) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in ("train", "test"):
        digest.update(labels[part].tobytes())
        digest.update(_open_pixels(folder, part, len(labels[part]), size).data)
    return digest.hexdigest()


def _check_bad_images(data: DataSpec, where: str, bad: Mapping[str, str], total: int) -> None:
    """bad: why it cannot be decoded, by the image's path. Raises DataError if the study does not allow so many."""
    if not bad or (data.bad_images == "skip" and len(bad) <= data.max_bad_share * total):
        return
    if len(bad) == 1:
        ((path, reason),) = bad.items()
        named = f"{path} cannot be decoded: {reason}"
    else:
        listed = [f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED]]
        more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        named = f"{len(bad):,} of {total:,} images cannot be decoded: {', '.join(listed)}{more}"
    if data.bad_images == "skip":
        advice = f"that is more than data.max_bad_share = {data.max_bad_share:g} of all allows"
    else:
        advice = "mend or remove them; data.bad_images = 'skip' leaves them out"
    raise DataError(f"data.archive: {where}: {named}; {advice}")


def _decode(listing: Listing, path: str, size: int) -> NDArray[np.uint8] | str:
    """uint8 (size, size, 3), upright, grey as RGB; another size is scaled and cropped to its centre.

    Or why it cannot be decoded. Raises DataError if it might be the next time.
    """
    try:
        with listing.open_image(path) as image:
            rgb = _as_rgb(image)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno not in NOT_TO_BE_READ:
            raise DataError(
                f"data.archive: {listing.where}: {printable(path)} cannot be read: {error.strerror}; try again"
            ) from None
        return printable(error.strerror or str(error))
    except Exception as error:  # Pillow raises whatever its decoders do: SyntaxError, struct.error, ...
        return printable(str(error).split("\n")[0] or type(error).__name__)
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Its first frame, upright, on white where it is transparent. Raises ValueError for values of unknown range."""
    image.load()
    turned = UPRIGHT.get(_orientation(image))
    if image.mode[0] in "IF":
        image = _in_8_bits(image)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    rgb = image.convert("RGB")
    return rgb.transpose(turned) if turned is not None else rgb


def _orientation(image: Image.Image) -> int:
    """1 where it is not known: EXIF that cannot be read is no reason to refuse an image."""
    if image.info.keys().isdisjoint(WITH_ORIENTATION):  # asking Pillow takes a third of the time of a small image
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever damaged EXIF makes Pillow raise
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A grey image whose values have more than 8 bits. Raises ValueError if nothing tells what is white."""
    if image.mode.startswith("I;16"):
        bits = cast(Any, image).tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # which Pillow scales to 16 bits
        bits = 16
    else:
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its values are {kind}, whose range is not known; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.float64)
    scaled = (values * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    scaled[values == image.info.get("transparency")] = 255
    return Image.fromarray(scaled)


def _limit_per_class(labels: NDArray[np.int64], rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many random rows of each class, in ascending order."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_class = [shuffled[labels[shuffled] == label][:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(by_class))
