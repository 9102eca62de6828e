"""The image set of a study: training, tuning and test images as memory-mapped arrays, which open in milliseconds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.cache import Progress, check_bad_images, open_pixels, prepare_images
from hpo.vision.data.disk import unusable
from hpo.vision.data.splits import stratified_split


@dataclass(frozen=True)
class Split:
    """A subset of the images.

    pixels: uint8 (images in the array, height, width, 3), memory-mapped; rows: int64 (n,), positions in `pixels` of the
    images in this split; labels: int64 (n,); keys: int64 (n,), identifies an image in every split and process, and
    seeds its perturbations.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def evenly_spread(self, count: int) -> "Split":
        """`count` of the images, or all if there are fewer; of all classes alike, since these are in order."""
        count = min(count, len(self))
        chosen = np.arange(count) * len(self) // count
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen], keys=self.keys[chosen])


@dataclass(frozen=True)
class ImageSet:
    """train: for training; tuning: for scoring trials; test: locked, for confirmations only."""

    train: Split
    tuning: Split
    test: Split
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Of the classes, for people: in words where `classes` has WordNet's codes."""
    fingerprint: str
    """SHA-256 of all pixels, labels and class names; it does not depend on the split."""
    skipped: tuple[str, ...] = ()
    """Paths of undecodable images, which data.bad_images = "skip" allows to leave out."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files of unsupported types in the class folders, by suffix."""

    @property
    def learned(self) -> Split:
        """What is trained on where nothing need be left to choose by: the training and the tuning images."""
        rows, labels, keys = (
            np.concatenate([getattr(self.train, name), getattr(self.tuning, name)])
            for name in ("rows", "labels", "keys")
        )
        order = np.argsort(rows)
        return replace(self.train, rows=rows[order], labels=labels[order], keys=keys[order])


def load_images(data: DataSpec, image_size: int, seed: int, progress: Progress | None = None) -> ImageSet:
    """Opens the images of a study; builds the cache first if necessary. Raises DataError.

    TinyImageNet's images keep their 64 px; those of other sources are stored at `image_size` px.
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
        names=tuple(meta.get("words", {}).get(name, name) for name in meta["classes"]),
    )


def _limit_per_class(labels: NDArray[np.int64], rows: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` random rows of each class, in ascending order."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_class = [shuffled[labels[shuffled] == label][:limit] for label in np.unique(labels)]
    return np.sort(np.concatenate(by_class))
