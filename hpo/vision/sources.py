"""Where images come from: TinyImageNet's layout, any folder a class, scikit-learn's digits.

Each source lists its images and reads one; nothing is ever unpacked, so an archive cannot write anywhere.
"""

import io
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from hpo.errors import DataError
from hpo.vision.splits import stratified_split

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}
TINY_IMAGENET_LAYOUT = "wnids.txt, train/<wnid>/images/, val/images/, val/val_annotations.txt"
HELD_OUT_FRACTION = 0.2
"""Share of a source without official test images that becomes the locked test set."""


@dataclass(frozen=True)
class Listing:
    """The images of a source. `train` and `test` are (path, label) pairs; labels index `classes`."""

    where: str
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    open_image: Callable[[str], AbstractContextManager[Image.Image]]


@dataclass(frozen=True)
class Tree:
    """Files of a folder or of a zip, by their path below its top, with forward slashes."""

    where: Path
    paths: list[str]
    read: Callable[[str], bytes]
    is_folder: bool

    def open_image(self, path: str) -> AbstractContextManager[Image.Image]:
        return Image.open(io.BytesIO(self.read(path)))


def open_tree(where: Path) -> Tree:
    """Raises DataError if there is no such folder or zip, or if the zip is damaged."""
    if where.is_dir():
        paths = sorted(path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_file())
        return Tree(where, paths, lambda path: (where / path).read_bytes(), is_folder=True)
    try:
        archive = zipfile.ZipFile(where)
    except FileNotFoundError:
        raise DataError(f"data.archive: {where} does not exist; give a zip or a folder") from None
    except zipfile.BadZipFile:
        raise DataError(
            f"data.archive: {where} is not a whole zip file (cut short or damaged?); fetch it again"
        ) from None
    except OSError as error:
        raise DataError(f"data.archive: {where} cannot be read: {error.strerror}") from None
    names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    return Tree(where, names, archive.read, is_folder=False)


def list_tiny_imagenet(tree: Tree) -> Listing:
    """TinyImageNet's own layout, with any number of classes; the official validation images are the test set."""
    tops = [path.removesuffix("wnids.txt") for path in tree.paths if PurePosixPath(path).name == "wnids.txt"]
    if not tops:
        raise DataError(f"data.archive: {tree.where} has no wnids.txt; TinyImageNet's layout is {TINY_IMAGENET_LAYOUT}")
    top = min(tops, key=len)
    classes = tuple(_read_text(tree, f"{top}wnids.txt").split())
    if len(set(classes)) < max(len(classes), 2):
        raise DataError(f"data.archive: {tree.where}: {top}wnids.txt must name two classes or more, each once")
    train = []
    by_folder = _images_by_folder(tree)
    for label, wnid in enumerate(classes):
        images = by_folder.get(f"{top}train/{wnid}/images", [])
        if not images:
            raise DataError(f"data.archive: {tree.where}: class {wnid} has no images in {top}train/{wnid}/images/")
        train += [(path, label) for path in images]
    return Listing(str(tree.where), classes, train, _annotated(tree, top, classes), tree.open_image)


def _annotated(tree: Tree, top: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """The validation images that val_annotations.txt names, in its order."""
    annotations = f"{top}val/val_annotations.txt"
    present, labels = set(tree.paths), {wnid: label for label, wnid in enumerate(classes)}
    if annotations not in present:
        raise DataError(
            f"data.archive: {tree.where} has no {annotations}; TinyImageNet's layout is {TINY_IMAGENET_LAYOUT}"
        )
    listed = []
    for number, line in enumerate(_read_text(tree, annotations).splitlines(), start=1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        path = f"{top}val/images/{name}"
        if wnid not in labels:
            raise DataError(
                f"data.archive: {tree.where}: {annotations}, line {number}: {wnid!r} is no class of wnids.txt"
            )
        if path not in present:
            raise DataError(f"data.archive: {tree.where}: {annotations}, line {number} names {path}, which is missing")
        listed.append((path, labels[wnid]))
    for wnid in set(classes) - {classes[label] for _, label in listed}:
        raise DataError(f"data.archive: {tree.where}: class {wnid} has no images in {annotations}")
    return listed


def _read_text(tree: Tree, path: str) -> str:
    try:
        return tree.read(path).decode("utf-8")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f"data.archive: {tree.where}: {path} cannot be read: {error}") from None


def list_image_folder(tree: Tree) -> Listing:
    """A folder a class, or train/ and test/ (or val/) with a folder a class each; without them a fifth is held out as
    test.
    """
    by_folder = {folder: images for folder, images in _images_by_folder(tree).items() if images}
    top = _common_top(by_folder)
    train_top = f"{top}train/" if any(folder.startswith(f"{top}train/") for folder in by_folder) else top
    train, classes = _labelled(tree, by_folder, train_top, None)
    if train_top == top:
        labels = [label for _, label in train]
        kept, held_out = _hold_out_test_images(labels, str(tree.where))
        return Listing(
            str(tree.where), classes, [train[i] for i in kept], [train[i] for i in held_out], tree.open_image
        )
    tests = [split for split in ("test", "val") if any(folder.startswith(f"{top}{split}/") for folder in by_folder)]
    if not tests:
        raise DataError(f"data.archive: {tree.where} has train/ but neither test/ nor val/ beside it")
    test, _ = _labelled(tree, by_folder, f"{top}{tests[0]}/", classes)
    return Listing(str(tree.where), classes, train, test, tree.open_image)


def _labelled(
    tree: Tree, by_folder: dict[str, list[str]], top: str, classes: tuple[str, ...] | None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Images below `top` with their class, which is the first folder below it; `classes`, if given, are the only
    ones.
    """
    found: dict[str, list[str]] = {name: [] for name in _folders_below(tree, top)}
    for folder, images in by_folder.items():
        if folder.startswith(top):
            found[folder.removeprefix(top).split("/")[0]] += images
    names = classes or tuple(sorted(found))
    if len(names) < 2:
        raise DataError(
            f"data.archive: {tree.where} must hold two folders or more, a folder a class; found {len(names)}"
        )
    for name in names:
        if not found.get(name):
            raise DataError(f"data.archive: {tree.where}: class {name} has no images in {top}{name}/")
    for name in set(found) - set(names):
        raise DataError(f"data.archive: {tree.where}: {top}{name}/ is no class of the training images")
    return [(path, label) for label, name in enumerate(names) for path in found[name]], names


def _folders_below(tree: Tree, top: str) -> set[str]:
    """Names of the folders directly below `top`, an empty one in a folder on disk included."""
    names = {
        path.removeprefix(top).split("/")[0]
        for path in tree.paths
        if path.startswith(top) and "/" in path.removeprefix(top)
    }
    if not tree.is_folder:
        return names
    return names | {path.name for path in (tree.where / top).iterdir() if path.is_dir()}


def _common_top(folders: Iterable[str]) -> str:
    """The single folder that holds all the others (as zips often have), with a slash at its end, or ''."""
    tops = {folder.split("/")[0] for folder in folders}
    nested = all("/" in folder for folder in folders)
    return f"{tops.pop()}/" if len(tops) == 1 and nested else ""


def list_digits() -> Listing:
    """1,797 scans of handwritten digits, 8x8 grey (UCI Optical Recognition of Handwritten Digits), from
    scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in digits.target]
    kept, held_out = _hold_out_test_images(labels, "digits")
    return Listing(
        where="scikit-learn's digits",
        classes=tuple(str(name) for name in digits.target_names),
        train=[(str(i), labels[i]) for i in kept],
        test=[(str(i), labels[i]) for i in held_out],
        open_image=lambda path: nullcontext(Image.fromarray(scans[int(path)])),
    )


def _hold_out_test_images(labels: list[int], where: str) -> tuple[list[int], list[int]]:
    """(kept, held out) positions; the same for ever, so that the test set stays locked whatever a study's seed is."""
    try:
        kept, held_out = stratified_split(np.array(labels), HELD_OUT_FRACTION, seed=0)
    except ValueError as error:
        raise DataError(f"data.archive: {where}: too few images to hold out a test set: {error}") from None
    return kept.tolist(), held_out.tolist()


def _images_by_folder(tree: Tree) -> dict[str, list[str]]:
    by_folder: dict[str, list[str]] = {}
    for path in tree.paths:
        folder, _, name = path.rpartition("/")
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
            by_folder.setdefault(folder, []).append(path)
    return by_folder
