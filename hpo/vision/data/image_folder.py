"""Image folders: one folder for each class, or folders named train, test and val with such folders in them."""

import re
from pathlib import PurePosixPath

from hpo.errors import DataError
from hpo.vision.data.listing import Listing, by_suffix, count_suffixes, hold_out_test_images
from hpo.vision.data.trees import WNIDS, Tree, images_by_folder, is_image, printable

SPLIT_NAMES = re.compile(
    r"(?<![a-z])(?:"
    r"(?P<train>train|training|trainval)|"
    r"(?P<test>test|testing|hold[-_ ]?out)|"
    r"(?P<validation>val|valid|validation|dev|development|eval|evaluation)"
    r")(?:set|data|images|imgs)?(?![a-z])"
)
"""Matches a split in a folder's lower-case name: `train`, `seg_test`, `validation-set`, `trainset`."""


def list_image_folder(tree: Tree) -> Listing:
    """Lists images in one folder per class, a fifth of them held out as test images, or in one folder per split, each
    with one folder per class.

    Names of splits are matched in any case: train or training, test or testing, val, valid or validation. The test
    images come from test/ if it contains the classes, otherwise from val/. Images outside of class folders are ignored.
    Raises DataError.
    """
    by_folder = images_by_folder(tree)
    top = _descend(by_folder, "")
    splits = _splits(by_folder, top)
    if not splits:
        train, classes = _labelled(tree, by_folder, top, None)
        kept, held_out = hold_out_test_images([label for _, label in train], classes, tree.where)
        return _listing(tree, classes, [train[i] for i in kept], [train[i] for i in held_out])
    found = f"the folders {', '.join(printable(f'{top}{name}/') for name in splits)}, named as splits"
    trains = [name for name, kind in splits.items() if kind == "train"]
    if len(trains) != 1:
        raise DataError(
            f"{tree.where} has {found}; one folder, and no more, must be train/. If they are classes, name them "
            "otherwise"
        )
    train, classes = _labelled(tree, by_folder, _descend(by_folder, f"{top}{trains[0]}/"), None)
    for wanted in ("test", "validation"):
        tops = [_descend(by_folder, f"{top}{name}/") for name, kind in splits.items() if kind == wanted]
        with_classes = [each for each in tops if not _children(by_folder, each).isdisjoint(classes)]
        if len(with_classes) > 1:
            raise DataError(f"{tree.where} has {found}; keep one of {printable(', '.join(with_classes))}")
        if with_classes:
            test, _ = _labelled(tree, by_folder, with_classes[0], classes)
            return _listing(tree, classes, train, test)
    tiny = any(PurePosixPath(path).name == WNIDS for path in tree.files)
    advice = "data.name = 'tiny-imagenet' reads TinyImageNet's own layout" if tiny else "train/ alone is split by hpo"
    raise DataError(
        f"{tree.where} has train/ but neither test/ nor val/ with a folder a class beside it, only {found}; {advice}"
    )


def _listing(
    tree: Tree, folders: tuple[str, ...], train: list[tuple[str, int]], test: list[tuple[str, int]]
) -> Listing:
    classes = tuple(map(class_name, folders))
    return Listing(tree.where, classes, train, test, tree.open_image, other_files(tree, ""))


def class_name(folder: str) -> str:
    """The name of the class whose folder has this name. Folder names need not be valid UTF-8; class names are printed
    and stored, so they are made so with escapes.
    """
    return folder.encode(errors="backslashreplace").decode()


def other_files(tree: Tree, folder: str) -> dict[str, int]:
    """Number of files below `folder` that are not images, by suffix. folder: ends in a slash, or "" for all folders."""
    return count_suffixes(p for p in tree.files if "/" in p and p.startswith(folder) and not is_image(p))


def _splits(by_folder: dict[str, list[str]], top: str) -> dict[str, str]:
    """The split (train, test or validation) of each folder below `top` that is one; empty if the folders are classes.

    A class may also be named `train`, next to `bus`, or `test tube`; hence the conditions.
    """
    below = {name: _children(by_folder, f"{top}{name}/") for name in sorted(_children(by_folder, top))}
    matches = {name: match for name in below if (match := SPLIT_NAMES.search(name.lower()))}
    splits = {name: match.lastgroup or "" for name, match in matches.items()}
    several_kinds = len(set(splits.values())) > 1
    alone = len(splits) == len(below)
    if any(below[name] for name in splits):
        train = any(match["train"] and match.group() == name.lower() for name, match in matches.items())
        like_another = any(len(below[name] & below[other]) > 1 for name in splits for other in below.keys() - splits)
        return splits if several_kinds or alone or train or like_another else {}
    return splits if several_kinds and alone else {}


def _children(by_folder: dict[str, list[str]], top: str) -> set[str]:
    """Names of the folders directly below `top` that contain images at any depth."""
    return {folder.removeprefix(top).split("/")[0] for folder in by_folder if folder and folder.startswith(top)}


def _descend(by_folder: dict[str, list[str]], top: str) -> str:
    """`top`, or the only folder below it where that contains all others, as in many zips; ends in a slash."""
    while len(names := _children(by_folder, top)) == 1 and _children(by_folder, below := f"{top}{min(names)}/"):
        top = below
    return top


def _labelled(
    tree: Tree, by_folder: dict[str, list[str]], top: str, classes: tuple[str, ...] | None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """(path, label) of the images below `top`, and the class names, which are the folders directly below it.

    classes: the expected names, None to take whatever is found. Raises DataError.
    """
    below = {folder.removeprefix(top).split("/")[0] for folder in tree.folders if folder.startswith(top)}
    found: dict[str, list[str]] = {name: [] for name in below}
    for folder, images in by_folder.items():
        if folder and folder.startswith(top):
            found[folder.removeprefix(top).split("/")[0]] += images
    names = classes or tuple(sorted(found))
    shown = f"{tree.where}/{printable(top)}".rstrip("/")
    if len(names) < 2:
        raise DataError(f"{shown} must hold two folders or more, a folder a class; found {len(names)}")
    for name in names:
        if not found.get(name):
            others = other_files(tree, f"{top}{name}/")
            why = f", only files of types that are not read ({by_suffix(others)}); convert them to JPEG or PNG"
            raise DataError(
                f"{tree.where}: class {printable(name)} has no images in {top}{printable(name)}/{why if others else ''}"
            )
    for name in sorted(set(found) - set(names)):
        raise DataError(f"{tree.where}: {top}{printable(name)}/ is no class of the training images")
    return [(path, label) for label, name in enumerate(names) for path in found[name]], names
