"""The image set of a study: training, tuning and test images as memory-mapped arrays, opened in milliseconds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.cache import Progress, check_bad_images, open_pixels, prepare_images
from hpo.vision.data.disk import unusable
from hpo.vision.data.splits import stratified_split


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
            pixels[part] = open_pixels(folder, part, len(labels[part]), meta["size"])
    except OSError as error:
        raise unusable(folder, error) from None
    check_bad_images(data, meta["source"], meta["bad"], meta["images"])
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


def _limit_per_class(labels: NDArray[np.int64], rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many random rows of each class, in ascending order."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_class = [shuffled[labels[shuffled] == label][:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(by_class))
