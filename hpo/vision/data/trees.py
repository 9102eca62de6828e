"""Folders and zips as trees of files: what is in them, and the content of each file.

Nothing is ever unpacked, so an archive cannot write anywhere.
"""

import errno
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from hpo.errors import DataError
from hpo.vision.data.file_kinds import HEAD_BYTES, archive_kind, placeholder_kind

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
"""Names of folders that file managers, network storage and programs create by themselves; they are skipped."""
WNIDS, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val_annotations.txt"
"""TinyImageNet's text files: apart from images, the only files that are read."""
READABLE_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
READABLE_METHODS |= {93} if hasattr(zipfile, "ZIP_ZSTANDARD") else set()
METHODS = {9: "Deflate64, as Windows Explorer takes for much data", 93: "Zstandard", 95: "XZ", 98: "PPMd"}


@dataclass(frozen=True)
class Tree:
    """The visible content of a folder or a zip, as paths relative to its top, with forward slashes.

    where: what messages about it begin with, the key and the location: `data.archive: photos.zip`; files: sorted;
    folders: all except the top, including empty ones; read: returns the content of a file.
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
    """A folder and the names of its files.

    path: relative to the top, "" for the top itself; changed_ns: modification time in nanoseconds, changed by adding,
    removing or renaming a file in it.
    """

    path: str
    changed_ns: int
    files: list[str]


def walk(top: Path) -> list[Folder]:
    """`top` and all visible folders below it, sorted by path.

    Files are listed, never opened or stat'ed: on a network drive that would take minutes for many files. Links to
    folders are followed, except back to a folder that contains the link. A broken link counts as a file if its name has
    a suffix, otherwise as an empty folder. Raises OSError.
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
    """A link whose name ends like an image counts as a file: resolving it would cost as much as a stat of the file."""
    if not entry.is_symlink():
        return entry.is_dir()
    if is_image(entry.name):
        return False
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError:
        return not PurePosixPath(entry.name).suffix


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def printable(text: str) -> str:
    """The text, with escapes if it has unprintable characters: file names may contain anything, even line breaks."""
    return text if text.isprintable() else repr(text)[1:-1]


def open_tree(where: Path, key: str) -> Tree:
    """Opens a folder or a zip. key: the setting or option that names it, for messages.

    Raises DataError if it does not exist, is damaged, or has a format that is not read.
    """
    shown = f"{key}: {printable(str(where))}"
    try:
        return _open_folder(where, shown) if where.is_dir() else _open_zip(where, shown)
    except FileNotFoundError:
        raise DataError(f"{shown} does not exist; give a zip or a folder") from None
    except OSError as error:
        which = printable(str(error.filename or where))
        raise DataError(f"{key}: {which} cannot be read: {error.strerror or error}") from None


def _open_folder(where: Path, shown: str) -> Tree:
    folders = walk(where)
    files = sorted(f"{folder.path}/{name}".removeprefix("/") for folder in folders for name in folder.files)
    below = {folder.path for folder in folders if folder.path}
    return Tree(shown, files, below, lambda path: (where / path).read_bytes())


def _open_zip(where: Path, shown: str) -> Tree:
    try:
        archive = zipfile.ZipFile(where)
    except NotImplementedError as error:
        raise DataError(f"{shown} cannot be read: {error}; unpack it and give the folder, or pack it anew") from None
    except (zipfile.BadZipFile, ValueError) as error:
        with where.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if kind := archive_kind(head):
            reason = f"is {kind}; give a zip, or unpack it and give the folder"
        elif kind := placeholder_kind(head):
            reason = f"is no zip but {kind}"
        else:
            reason = "is not a whole zip file (cut short or damaged?); fetch it again"
        raise DataError(f"{shown} {reason}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")  # as some Windows programs write it
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
    """Raises DataError for a member that is needed and that zipfile cannot read: encrypted or with another method."""
    name = PurePosixPath(member.filename).name
    if not is_image(name) and name not in (WNIDS, ANNOTATIONS):
        return
    if member.flag_bits & 1:
        reason = "is encrypted"
    elif member.compress_type not in READABLE_METHODS:
        method = METHODS.get(member.compress_type, "unknown here")
        reason = f"is compressed by method {member.compress_type} ({method})"
    else:
        return
    raise DataError(
        f"{shown}: {printable(member.filename)} {reason}, which cannot be read; unpack it and give the folder, or pack "
        "it anew"
    )


def images_by_folder(tree: Tree) -> dict[str, list[str]]:
    """Paths of the images in each folder that directly contains some, by the folder's path."""
    return by_folder(filter(is_image, tree.files))


def by_folder(files: Iterable[str]) -> dict[str, list[str]]:
    """Paths of the files in each folder that directly contains some, by the folder's path."""
    found: dict[str, list[str]] = {}
    for path in files:
        found.setdefault(path.rpartition("/")[0], []).append(path)
    return found
