"""TinyImageNet's own layout: wnids.txt, a folder of training images for each class, annotated validation images."""

from collections import Counter
from pathlib import PurePosixPath

from hpo.errors import DataError
from hpo.vision.data.listing import Listing
from hpo.vision.data.trees import ANNOTATIONS, WNIDS, WORDS, Tree, images_by_folder

TINY_IMAGENET_LAYOUT = f"{WNIDS}, train/<wnid>/images/, val/images/, val/{ANNOTATIONS}"


def list_tiny_imagenet(tree: Tree) -> Listing:
    """Lists images in TinyImageNet's layout, with any number of classes. The official validation images become the test
    set; val/ may also have been sorted into one folder per class, as is common. Raises DataError.
    """
    tops = [path.removesuffix(WNIDS) for path in tree.files if PurePosixPath(path).name == WNIDS]
    if not tops:
        raise DataError(
            f"{tree.where} has no {WNIDS}; TinyImageNet's layout is {TINY_IMAGENET_LAYOUT}. A folder a class is "
            "data.name = 'image-folder'"
        )
    top = min(tops, key=len)
    classes = tuple(_read_text(tree, f"{top}{WNIDS}").split())
    if len(set(classes)) < max(len(classes), 2):
        raise DataError(f"{tree.where}: {top}{WNIDS} must name two classes or more, each once")
    by_folder = images_by_folder(tree)
    train = _sorted_into_classes(tree, by_folder, f"{top}train", classes)
    if by_folder.get(f"{top}val/images") or not any(folder.startswith(f"{top}val/") for folder in by_folder):
        test = _annotated(tree, top, classes)
    else:
        test = _sorted_into_classes(tree, by_folder, f"{top}val", classes)
        test.sort(key=lambda entry: _natural(PurePosixPath(entry[0]).name))  # val_0, val_1, …: the annotations' order
    return Listing(tree.where, classes, train, test, tree.open_image, words=_words(tree, f"{top}{WORDS}", classes))


def _words(tree: Tree, path: str, classes: tuple[str, ...]) -> dict[str, str]:
    """`{"n01443537": "goldfish"}`: of the synonyms the first, where no other class has it; empty without the file."""
    if path not in set(tree.files):
        return {}
    synonyms = dict(line.partition("\t")[::2] for line in _read_text(tree, path).splitlines())
    first = {wnid: synonyms.get(wnid, "").partition(",")[0].strip() for wnid in classes}
    often = Counter(first.values())
    return {wnid: word for wnid, word in first.items() if word and often[word] == 1}


def _natural(name: str) -> tuple[int, str]:
    """Sort key that puts val_2 before val_10."""
    return len(name), name


def _sorted_into_classes(
    tree: Tree, by_folder: dict[str, list[str]], top: str, classes: tuple[str, ...]
) -> list[tuple[str, int]]:
    """(path, label) of the images in top/<wnid>/images/ or top/<wnid>/, class by class."""
    listed = []
    for label, wnid in enumerate(classes):
        images = by_folder.get(f"{top}/{wnid}/images") or by_folder.get(f"{top}/{wnid}", [])
        if not images:
            raise DataError(f"{tree.where}: class {wnid} has no images in {top}/{wnid}/images/")
        listed += [(path, label) for path in images]
    return listed


def _annotated(tree: Tree, top: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(path, label) of the validation images named in val_annotations.txt, in its order."""
    annotations = f"{top}val/{ANNOTATIONS}"
    present, labels = set(tree.files), {wnid: label for label, wnid in enumerate(classes)}
    if annotations not in present:
        raise DataError(f"{tree.where} has no {annotations}; TinyImageNet's layout is {TINY_IMAGENET_LAYOUT}")
    listed = []
    for number, line in enumerate(_read_text(tree, annotations).splitlines(), start=1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        path = f"{top}val/images/{name}"
        if wnid not in labels:
            raise DataError(f"{tree.where}: {annotations}, line {number}: {wnid!r} is no class of {WNIDS}")
        if path not in present:
            raise DataError(f"{tree.where}: {annotations}, line {number} names {path}, which is missing")
        listed.append((path, labels[wnid]))
    for wnid in set(classes) - {classes[label] for _, label in listed}:
        raise DataError(f"{tree.where}: class {wnid} has no images in {annotations}")
    return listed


def _read_text(tree: Tree, path: str) -> str:
    try:
        return tree.read(path).decode("utf-8")
    except Exception as error:  # zipfile lets its decompressors' errors through: BadZipFile, zlib.error, EOFError, …
        raise DataError(f"{tree.where}: {path} cannot be read: {error}") from None
