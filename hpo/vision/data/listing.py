"""Listing: the classes and labelled images of a source, whatever its format."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from hpo.errors import DataError
from hpo.vision.data.splits import stratified_split
from hpo.vision.data.trees import printable

SUFFIXES_SHOWN = 5
HELD_OUT_FRACTION = 0.2
"""Fraction of the images held out as the locked test set where a source has no test images of its own."""


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    where: what messages about it begin with, the key and the location; train, test: (path, label) pairs, where labels
    index `classes`; open_image: opens the image at a path; left_out: number of files of unsupported types, by suffix;
    words: what a class is called, where its name is a code.
    """

    where: str
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    open_image: Callable[[str], AbstractContextManager[Image.Image]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


def count_suffixes(paths: Iterable[str]) -> dict[str, int]:
    """Number of files by suffix, most frequent first."""
    return dict(Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths).most_common())


def by_suffix(left_out: Mapping[str, int]) -> str:
    """The counts as text, most frequent first: `12 .heic, 1 no suffix`."""
    return printable(", ".join(f"{count:,} {suffix}" for suffix, count in list(left_out.items())[:SUFFIXES_SHOWN]))


def hold_out_test_images(labels: list[int], classes: Sequence[str], where: str) -> tuple[list[int], list[int]]:
    """Positions (kept, held out). They do not depend on a study's seed, so that the test set stays locked.

    Raises DataError if a class has fewer than two images.
    """
    try:
        kept, held_out = stratified_split(np.array(labels), classes, HELD_OUT_FRACTION, seed=0)
    except ValueError as error:
        raise DataError(f"{where}: too few images to hold out a test set: {printable(str(error))}") from None
    return kept.tolist(), held_out.tolist()
