"""Corrupted test images on disk, such as Tiny-ImageNet-C: a set for each family and severity, decoded one at a time.

Tiny-ImageNet-C's images are not TinyImageNet's validation images, and were saved as JPEG after they were corrupted.
Compare networks on such a set, but never an accuracy on it with one under a perturbation made in memory.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from hpo.errors import DataError
from hpo.vision.data.decoding import named_with_reasons, write_pixels
from hpo.vision.data.image_folder import class_name
from hpo.vision.data.images import Split
from hpo.vision.data.listing import Listing, by_suffix, count_suffixes
from hpo.vision.data.trees import Tree, by_folder, images_by_folder, is_image, open_tree, printable

SEVERITIES = ("1", "2", "3", "4", "5")
LAYOUT = "<family>/<severity>/<class>/, severities 1 to 5, or a folder a class"
SHOWN = 3
"""Number of folders or classes named in an error."""


@dataclass(frozen=True)
class CorruptedSet:
    """Test images under one corruption, listed but not decoded.

    family: name of the folder that holds the severities, of the one that holds the classes if there are no severities,
    or of the whole archive if that is it; severity: 1 to 5, None if there are none; listing: all images are in `test`,
    class by class in the study's order; other_classes: number of images left out because the study lacks their class.
    """

    family: str
    severity: int | None
    listing: Listing
    other_classes: int

    def decode(self, size: int) -> Split:
        """All images, in memory, at `size` px, which must be the size of the study's own test images in their cache;
        those of another size are scaled and cropped as those are.

        The keys are negative, which those of a study's images never are: nothing pairs with them. Raises DataError if
        any image cannot be decoded, whatever data.bad_images is: accuracies on a part of a set are not its accuracies.
        """
        entries, pixels, bad = self.listing.test, io.BytesIO(), dict[str, str]()
        labels = write_pixels(self.listing, entries, size, pixels, bad)
        if bad:
            which = named_with_reasons(bad, len(entries))
            raise DataError(f"{self.listing.where}: {which}; fetch or make the set anew: it is scored as a whole")
        rows = np.arange(len(labels))
        return Split(np.frombuffer(pixels.getbuffer(), np.uint8).reshape(-1, size, size, 3), rows, labels, -1 - rows)


def find_corrupted_sets(archive: Path, classes: Sequence[str], key: str = "archive") -> list[CorruptedSet]:
    """The sets in a folder or zip, by family and severity, without decoding any image.

    Images lie in <family>/<severity>/<class>/, at any depth, or all in one folder a class. Classes are matched by the
    exact names of their folders; of TinyImageNet, and of Tiny-ImageNet-C, these are wnids. A set may have more classes
    than the study, which are left out, but not fewer. Images beside class folders are ignored.

    classes: the study's, by label (`ImageSet.classes`); key: the setting or option that names the archive, for
    messages. Raises DataError.
    """
    archive = archive.expanduser()
    tree = open_tree(archive, key)
    images, others = images_by_folder(tree), by_folder(path for path in tree.files if not is_image(path))
    class_folders = _class_folders(tree, images, others)
    own_name = Path(os.path.abspath(archive)).name.removesuffix(".zip")
    named = {top: _family_and_severity(tree, top, own_name) for top in class_folders}
    _check_layout(tree, class_folders, named)
    sets = []
    for top, (family, severity) in named.items():
        folders = class_folders[top]
        _check_classes(tree, top, folders, classes)
        left_out = count_suffixes(path for name in classes for path in others.get(folders[name], []))
        test = [(path, label) for label, name in enumerate(classes) for path in images[folders[name]]]
        listing = Listing(tree.where, tuple(classes), [], test, tree.open_image, left_out)
        sets.append(CorruptedSet(family, severity, listing, sum(len(images[f]) for f in folders.values()) - len(test)))
    return sorted(sets, key=lambda found: (found.family, found.severity or 0))


def _class_folders(
    tree: Tree, images: Mapping[str, list[str]], others: Mapping[str, list[str]]
) -> dict[str, dict[str, str]]:
    """Paths of the class folders, which are those without folders in them, by the folder that holds them and by class.

    Raises DataError if there are none, or one without images.
    """
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(tree.folders - {each.rpartition("/")[0] for each in tree.folders}):
        if folder not in images:
            suffixes = by_suffix(count_suffixes(others.get(folder, [])))
            only = f", only files of types that are not read ({suffixes})" if suffixes else ""
            raise DataError(f"{tree.where}: {printable(folder)}/ has no images{only}; fill the folder or remove it")
        top, _, name = folder.rpartition("/")
        found.setdefault(top, {})[class_name(name)] = folder
    if not found:
        raise DataError(f"{tree.where} has no folders of images; it must hold {LAYOUT}")
    return found


def _family_and_severity(tree: Tree, top: str, own_name: str) -> tuple[str, int | None]:
    """What the path of the folder that holds class folders says. own_name: the archive's own. Raises DataError."""
    *above, last = own_name, *PurePosixPath(top).parts
    if not (above and last.isdecimal()):
        return printable(last), None
    if last not in SEVERITIES:
        raise DataError(f"{tree.where}: {printable(top)}/ should be named by a severity, 1 to 5; rename or remove it")
    return printable(above[-1]), int(last)


def _check_layout(
    tree: Tree, class_folders: Mapping[str, Mapping[str, str]], named: Mapping[str, tuple[str, int | None]]
) -> None:
    """Raises DataError if sets without a severity are not alone, or if two are of the same family and severity."""
    plain = [top for top, (_, severity) in named.items() if severity is None]
    if plain and len(named) > 1:
        stray = [f"{folder}/" for top in plain for folder in class_folders[top].values()]
        raise DataError(f"{tree.where} must hold {LAYOUT}, and nothing else; what does not fit in: {_some(stray)}")
    tops: dict[tuple[str, int | None], str] = {}
    for top, (family, severity) in named.items():
        other = tops.setdefault((family, severity), top)
        if other != top:
            raise DataError(
                f"{tree.where}: {printable(other)}/ and {printable(top)}/ are both {family} of severity {severity}; "
                "keep one of them"
            )


def _check_classes(tree: Tree, top: str, folders: Mapping[str, str], classes: Sequence[str]) -> None:
    """Raises DataError if the set below `top` lacks classes of the study."""
    missing = [name for name in classes if name not in folders]
    if missing:
        where = f"{tree.where}: {printable(top)}/" if top else tree.where
        raise DataError(
            f"{where} lacks {len(missing):,} of the study's {len(classes):,} classes: {_some(missing)}; it has "
            f"{_some(sorted(folders))}. Accuracies on other classes cannot be compared: give images of all classes"
        )


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return printable(", ".join(names[:SHOWN])) + more
