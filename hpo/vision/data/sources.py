"""Where images come from: TinyImageNet's layout, any folder a class, scikit-learn's digits.

Each source lists its images and reads one; nothing is ever unpacked, so an archive cannot write anywhere.
"""

import errno
import io
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from hpo.errors import DataError
from hpo.vision.data.file_kinds import HEAD_BYTES, archive_kind, placeholder_kind
from hpo.vision.data.splits import stratified_split

IMAGE_SUFFIXES = {
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
}
LEFT_BY_SYSTEMS = {
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}
"""Folders that file managers, storage boxes and programs leave beside what people put there."""
WNIDS, ANNOTATIONS = "wnids.txt", "val_annotations.txt"
TINY_IMAGENET_LAYOUT = f"{WNIDS}, train/<wnid>/images/, val/images/, val/{ANNOTATIONS}"
SUFFIXES_SHOWN = 5
HELD_OUT_FRACTION = 0.2
"""Share of a source without official test images that becomes the locked test set."""
SPLIT_NAMES = re.compile(
    r"(?<![a-z])(?:"
    r"(?P<train>train|training|trainval)|"
    r"(?P<test>test|testing|hold[-_ ]?out)|"
    r"(?P<validation>val|valid|validation|dev|development|eval|evaluation)"
    r")(?:set|data|images|imgs)?(?![a-z])"
)
"""In a folder's name in lower case: `Train`, `seg_test`, `validation-set`, `trainset`."""
READABLE_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
READABLE_METHODS |= {93} if hasattr(zipfile, "ZIP_ZSTANDARD") else set()
METHODS = {9: "Deflate64, as Windows Explorer takes for much data", 93: "Zstandard", 95: "XZ", 98: "PPMd"}


@dataclass(frozen=True)
class Listing:
    """The images of a source. `train` and `test` are (path, label) pairs; labels index `classes`. left_out: how many
    files of other types lie in folders, by suffix.
    """

    where: str
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    open_image: Callable[[str], AbstractContextManager[Image.Image]]
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """What can be seen of a folder or of a zip, by paths below its top, with forward slashes.

    where: as it is shown to people; files, sorted; folders: all of them, those without files too, but for the top.
    """

    where: str
    files: list[str]
    folders: set[str]
    read: Callable[[str], bytes]

    def open_image(self, path: str) -> AbstractContextManager[Image.Image]:
        content = self.read(path)
        try:
            return Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            raise UnidentifiedImageError(placeholder_kind(content[:HEAD_BYTES]) or "not an image") from None


@dataclass(frozen=True)
class Folder:
    """path: below the top, "" for the top itself; changed_ns: when a file came, went or was renamed in it."""

    path: str
    changed_ns: int
    files: list[str]


def walk(top: Path) -> list[Folder]:
    """The folders below `top` that can be seen, and `top` itself, with their files' names; sorted.

    No file is looked at, which would take minutes for many on a network's disk. Links to folders are followed, but not
    back to a folder that they lie in; a link to nowhere is a file if its name has a suffix, or else a folder without
    files. Raises OSError.
    """
    found: list[Folder] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        path, above = waiting.pop()
        try:
            status = os.stat(top / path)
        except OSError as error:
            if not path or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            found.append(Folder(path, 0, []))
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        files = []
        with os.scandir(top / path) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                elif _is_folder(entry):
                    waiting.append((f"{path}/{entry.name}".removeprefix("/"), above | {here}))
                elif entry.is_symlink():
                    files.append(entry.name)
        found.append(Folder(path, status.st_mtime_ns, sorted(files)))
    return sorted(found, key=lambda folder: folder.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that is named as an image is taken for one: asking where it leads takes as long as looking at the file."""
    if not entry.is_symlink():
        return entry.is_dir()
    if _is_image(entry.name):
        return False
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError:
        return not PurePosixPath(entry.name).suffix


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def printable(text: str) -> str:
    """The text if it can be shown in one line, else with escapes: names of files may hold anything."""
    return text if text.isprintable() else repr(text)[1:-1]


def open_tree(where: Path) -> Tree:
    """Raises DataError if there is no such folder or zip, or if the zip is damaged or of a kind that cannot be read."""
    shown = printable(str(where))
    try:
        return _open_folder(where) if where.is_dir() else _open_zip(where)
    except FileNotFoundError:
        raise DataError(f"data.archive: {shown} does not exist; give a zip or a folder") from None
    except OSError as error:
        which = printable(str(error.filename)) if error.filename else shown
        raise DataError(f"data.archive: {which} cannot be read: {error.strerror or error}") from None


def _open_folder(where: Path) -> Tree:
    folders = walk(where)
    files = sorted(f"{folder.path}/{name}".removeprefix("/") for folder in folders for name in folder.files)
    below = {folder.path for folder in folders if folder.path}
    return Tree(printable(str(where)), files, below, lambda path: (where / path).read_bytes())


def _open_zip(where: Path) -> Tree:
    shown = printable(str(where))
    try:
        archive = zipfile.ZipFile(where)
    except NotImplementedError as error:
        raise DataError(
            f"data.archive: {shown} cannot be read: {error}; unpack it and give the folder, or pack it anew"
        ) from None
    except (zipfile.BadZipFile, ValueError) as error:
        with where.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if kind := archive_kind(head):
            reason = f"is {kind}; give a zip, or unpack it and give the folder"
        elif kind := placeholder_kind(head):
            reason = f"is no zip but {kind}"
        else:
            reason = "is not a whole zip file (cut short or damaged?); fetch it again"
        raise DataError(f"data.archive: {shown} {reason}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")  # some programs on Windows write such
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or any(_is_hidden(part) for part in parts):
            continue
        if name.endswith("/"):
            folders.add("/".join(parts))
        else:
            _refuse_unreadable(shown, member)
            members["/".join(parts)] = member
    for folder in {path.rpartition("/")[0] for path in members} | folders:
        folders |= {str(above) for above in (PurePosixPath(folder), *PurePosixPath(folder).parents)}
    return Tree(shown, sorted(members), folders - {"."}, lambda path: archive.read(members[path]))


def _refuse_unreadable(shown: str, member: zipfile.ZipInfo) -> None:
    """What is no image need not be read."""
    name = PurePosixPath(member.filename).name
    if not _is_image(name) and name not in (WNIDS, ANNOTATIONS):
        return
    if member.flag_bits & 1:
        reason = "is encrypted"
    elif member.compress_type not in READABLE_METHODS:
        method = METHODS.get(member.compress_type, "unknown here")
        reason = f"is compressed by method {member.compress_type} ({method})"
    else:
        return
    raise DataError(
        f"data.archive: {shown}: {printable(member.filename)} {reason}, which cannot be read; unpack it and give the "
        "folder, or pack it anew"
    )


def list_tiny_imagenet(tree: Tree) -> Listing:
    """TinyImageNet's own layout, with any number of classes; the official validation images are the test set.

    val/ may have been sorted into a folder a class, as many do.
    """
    tops = [path.removesuffix(WNIDS) for path in tree.files if PurePosixPath(path).name == WNIDS]
    if not tops:
        raise DataError(
            f"data.archive: {tree.where} has no {WNIDS}; TinyImageNet's layout is {TINY_IMAGENET_LAYOUT}. A folder a "
            "class is data.name = 'image-folder'"
        )
    top = min(tops, key=len)
    classes = tuple(_read_text(tree, f"{top}{WNIDS}").split())
    if len(set(classes)) < max(len(classes), 2):
        raise DataError(f"data.archive: {tree.where}: {top}{WNIDS} must name two classes or more, each once")
    by_folder = _images_by_folder(tree)
    train = _sorted_into_classes(tree, by_folder, f"{top}train", classes)
    if by_folder.get(f"{top}val/images") or not any(folder.startswith(f"{top}val/") for folder in by_folder):
        return Listing(tree.where, classes, train, _annotated(tree, top, classes), tree.open_image)
    test = _sorted_into_classes(tree, by_folder, f"{top}val", classes)
    test.sort(key=lambda entry: _natural(PurePosixPath(entry[0]).name))  # val_0, val_1, …: as the annotations had them
    return Listing(tree.where, classes, train, test, tree.open_image)


def _natural(name: str) -> tuple[int, str]:
    """A key that puts val_2 before val_10."""
    return len(name), name


def _sorted_into_classes(
    tree: Tree, by_folder: dict[str, list[str]], top: str, classes: tuple[str, ...]
) -> list[tuple[str, int]]:
    """The images in top/<wnid>/images/, or in top/<wnid>/, class by class."""
    listed = []
    for label, wnid in enumerate(classes):
        images = by_folder.get(f"{top}/{wnid}/images") or by_folder.get(f"{top}/{wnid}", [])
        if not images:
            raise DataError(f"data.archive: {tree.where}: class {wnid} has no images in {top}/{wnid}/images/")
        listed += [(path, label) for path in images]
    return listed


def _annotated(tree: Tree, top: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """The validation images that val_annotations.txt names, in its order."""
    annotations = f"{top}val/{ANNOTATIONS}"
    present, labels = set(tree.files), {wnid: label for label, wnid in enumerate(classes)}
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
                f"data.archive: {tree.where}: {annotations}, line {number}: {wnid!r} is no class of {WNIDS}"
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
    except Exception as error:  # zipfile raises whatever its decompressors do: BadZipFile, zlib.error, EOFError, …
        raise DataError(f"data.archive: {tree.where}: {path} cannot be read: {error}") from None


def list_image_folder(tree: Tree) -> Listing:
    """A folder a class, of which a fifth is held out as test; or folders of splits with a folder a class in each.

    The names of splits may be written in any case: train or training, test or testing, val, valid or validation. Test
    images are those of test if it has the classes in it, else those of val. Images that lie beside the folders are
    left out.
    """
    by_folder = _images_by_folder(tree)
    top = _descend(by_folder, "")
    splits = _splits(by_folder, top)
    if not splits:
        train, classes = _labelled(tree, by_folder, top, None)
        kept, held_out = _hold_out_test_images([label for _, label in train], classes, tree.where)
        return _listing(tree, classes, [train[i] for i in kept], [train[i] for i in held_out])
    found = f"the folders {', '.join(printable(f'{top}{name}/') for name in splits)}, named as splits"
    trains = [name for name, kind in splits.items() if kind == "train"]
    if len(trains) != 1:
        raise DataError(
            f"data.archive: {tree.where} has {found}; one folder, and no more, must be train/. If they are classes, "
            "name them otherwise"
        )
    train, classes = _labelled(tree, by_folder, _descend(by_folder, f"{top}{trains[0]}/"), None)
    for wanted in ("test", "validation"):
        tops = [_descend(by_folder, f"{top}{name}/") for name, kind in splits.items() if kind == wanted]
        with_classes = [each for each in tops if not _children(by_folder, each).isdisjoint(classes)]
        if len(with_classes) > 1:
            raise DataError(f"data.archive: {tree.where} has {found}; keep one of {printable(', '.join(with_classes))}")
        if with_classes:
            test, _ = _labelled(tree, by_folder, with_classes[0], classes)
            return _listing(tree, classes, train, test)
    tiny = any(PurePosixPath(path).name == WNIDS for path in tree.files)
    advice = "data.name = 'tiny-imagenet' reads TinyImageNet's own layout" if tiny else "train/ alone is split by hpo"
    raise DataError(
        f"data.archive: {tree.where} has train/ but neither test/ nor val/ with a folder a class beside it, only "
        f"{found}; {advice}"
    )


def _listing(
    tree: Tree, folders: tuple[str, ...], train: list[tuple[str, int]], test: list[tuple[str, int]]
) -> Listing:
    """Names of folders that are no UTF-8 are not for print; those of classes are."""
    classes = tuple(name.encode(errors="backslashreplace").decode() for name in folders)
    return Listing(tree.where, classes, train, test, tree.open_image, _other_files(tree, ""))


def _other_files(tree: Tree, folder: str) -> dict[str, int]:
    """How many files below a folder (with a slash at its end; "" for all folders) are no images, by suffix."""
    others = [path for path in tree.files if "/" in path and path.startswith(folder) and not _is_image(path)]
    return dict(Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in others).most_common())


def by_suffix(left_out: Mapping[str, int]) -> str:
    """`12 .heic, 1 no suffix`, the most frequent first."""
    return printable(", ".join(f"{count:,} {suffix}" for suffix, count in list(left_out.items())[:SUFFIXES_SHOWN]))


def _splits(by_folder: dict[str, list[str]], top: str) -> dict[str, str]:
    """train, test or validation for each folder below `top` that is a split's; none if they are classes.

    A class may be called `train`, beside `bus`; or `test tube`.
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
    """Names of the folders directly below `top` that have images in them, however deep."""
    return {folder.removeprefix(top).split("/")[0] for folder in by_folder if folder and folder.startswith(top)}


def _descend(by_folder: dict[str, list[str]], top: str) -> str:
    """`top`, or the single folder below it that holds all the others, as zips often have; with a slash at its end."""
    while len(names := _children(by_folder, top)) == 1 and _children(by_folder, below := f"{top}{min(names)}/"):
        top = below
    return top


def _labelled(
    tree: Tree, by_folder: dict[str, list[str]], top: str, classes: tuple[str, ...] | None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Images below `top` with their class, which is the first folder below it; `classes`, if given, are the only
    ones.
    """
    below = {folder.removeprefix(top).split("/")[0] for folder in tree.folders if folder.startswith(top)}
    found: dict[str, list[str]] = {name: [] for name in below}
    for folder, images in by_folder.items():
        if folder and folder.startswith(top):
            found[folder.removeprefix(top).split("/")[0]] += images
    names = classes or tuple(sorted(found))
    shown = f"{tree.where}/{printable(top)}".rstrip("/")
    if len(names) < 2:
        raise DataError(f"data.archive: {shown} must hold two folders or more, a folder a class; found {len(names)}")
    for name in names:
        if not found.get(name):
            others = _other_files(tree, f"{top}{name}/")
            why = f", only files of types that are not read ({by_suffix(others)}); convert them to JPEG or PNG"
            raise DataError(
                f"data.archive: {tree.where}: class {printable(name)} has no images in {top}{printable(name)}/"
                f"{why if others else ''}"
            )
    for name in sorted(set(found) - set(names)):
        raise DataError(f"data.archive: {tree.where}: {top}{printable(name)}/ is no class of the training images")
    return [(path, label) for label, name in enumerate(names) for path in found[name]], names


def list_digits() -> Listing:
    """1,797 scans of handwritten digits, 8x8 grey (UCI Optical Recognition of Handwritten Digits), from
    scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in digits.target]
    classes = tuple(str(name) for name in digits.target_names)
    kept, held_out = _hold_out_test_images(labels, classes, "digits")
    return Listing(
        where="scikit-learn's digits",
        classes=classes,
        train=[(str(i), labels[i]) for i in kept],
        test=[(str(i), labels[i]) for i in held_out],
        open_image=lambda path: nullcontext(Image.fromarray(scans[int(path)])),
    )


def _hold_out_test_images(labels: list[int], classes: Sequence[str], where: str) -> tuple[list[int], list[int]]:
    """(kept, held out) positions; the same for ever, so that the test set stays locked whatever a study's seed is."""
    try:
        kept, held_out = stratified_split(np.array(labels), classes, HELD_OUT_FRACTION, seed=0)
    except ValueError as error:
        raise DataError(
            f"data.archive: {where}: too few images to hold out a test set: {printable(str(error))}"
        ) from None
    return kept.tolist(), held_out.tolist()


def _images_by_folder(tree: Tree) -> dict[str, list[str]]:
    by_folder: dict[str, list[str]] = {}
    for path in tree.files:
        if _is_image(path):
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    return by_folder
