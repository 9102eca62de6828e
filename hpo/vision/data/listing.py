"""What a source of images is to the rest: its classes, and which images it trains and tests on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hpo.errors import DataError
from hpo.vision.data.splits import stratified_split
from hpo.vision.data.trees import printable

SUFFIXES_SHOWN = 5
HELD_OUT_FRACTION = 0.2
"""Share of a source without official test images that becomes the locked test set."""


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


def by_suffix(left_out: Mapping[str, int]) -> str:
    """`12 .heic, 1 no suffix`, the most frequent first."""
    return printable(", ".join(f"{count:,} {suffix}" for suffix, count in list(left_out.items())[:SUFFIXES_SHOWN]))


def hold_out_test_images(labels: list[int], classes: Sequence[str], where: str) -> tuple[list[int], list[int]]:
    """(kept, held out) positions; the same for ever, so that the test set stays locked whatever a study's seed is."""
    try:
        kept, held_out = stratified_split(np.array(labels), classes, HELD_OUT_FRACTION, seed=0)
    except ValueError as error:
        raise DataError(
            f"data.archive: {where}: too few images to hold out a test set: {printable(str(error))}"
        ) from None
    return kept.tolist(), held_out.tolist()
