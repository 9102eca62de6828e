"""What can be concluded from a few seeds and many images: intervals, tests, and how much more would be needed.

Seeds and images both are samples: of all trainings of a configuration, and of all images. A network that is trained
anew answers the same images, so the outcomes are a table, a row a seed and a column an image, in which both matter
("crossed random effects"). Two configurations are compared cell by cell: same seed, same image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Table = NDArray[np.float64]
"""Outcomes (seeds, images): 1 right, 0 wrong; of differences -1, 0 or 1. A single column: means a seed, if no more is
known."""

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
RESAMPLES = 2000
MAX_EXACT_SEEDS = 16
"""More would take longer than a second for all 2^n flips of signs; then 100,000 random ones are taken."""
MAX_SEEDS = 1000
"""A plan of more seeds is none."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return bool(self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Spread:
    """How the cells of a table vary. seed_means, image_means: variances of the means of its rows and of its columns;
    rest: of a cell, beside what its row and its column have; seeds, images: how many there are.
    """

    seed_means: float
    image_means: float
    rest: float
    seeds: int
    images: int

    @property
    def of_seeds(self) -> float:
        """What seeds alone would add, with any number of images."""
        return max(0.0, self.seed_means - self.rest / self.images)

    @property
    def of_images(self) -> float:
        """What images alone would add, with any number of seeds."""
        return max(0.0, self.image_means - self.rest / self.seeds)

    @property
    def of_mean(self) -> float:
        """The variance of the mean, unbiased, but never less than seeds or images add for themselves."""
        by_seed, by_image, both = self._parts
        return max(by_seed + by_image - both, by_seed, by_image)

    @property
    def _parts(self) -> tuple[float, float, float]:
        return self.seed_means / self.seeds, self.image_means / self.images, self.rest / (self.seeds * self.images)

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's, of `of_mean`."""
        known = zip(self._parts, (self.seeds - 1, self.images - 1, (self.seeds - 1) * (self.images - 1)), strict=True)
        uncertain = sum(part**2 / df for part, df in known if df > 0)
        return self.of_mean**2 / uncertain if uncertain > 0 else math.inf

    def variance(self, seeds: int, images: int) -> float:
        """Of the mean of another number of each."""
        return self.of_seeds / seeds + self.of_images / images + self.rest / (seeds * images)


def spread(table: Table) -> Spread:
    """Of a two-way layout with one cell each (Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4).
    With a single seed, what seeds add is unknown and counted as 0.
    """
    seeds, images = table.shape
    by_seed, by_image, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    seed_means = float(by_seed.var(ddof=1)) if seeds > 1 else 0.0
    image_means = float(by_image.var(ddof=1)) if images > 1 else 0.0
    rest = 0.0
    if seeds > 1 and images > 1:
        left = table - by_seed[:, None] - by_image[None, :] + mean
        rest = float((left**2).sum()) / ((seeds - 1) * (images - 1))
    return Spread(seed_means, image_means, rest, seeds, images)


def interval(table: Table, within: tuple[float, float] = (-1.0, 1.0)) -> Interval:
    """The mean of a table, with a 95 % interval for the mean over all seeds and images that might have been drawn.

    By a bootstrap that resamples seeds and images (Owen, "The pigeonhole bootstrap", 2007), which keeps the shape but
    not the width: with few seeds it is too narrow, and it counts what seeds and images share thrice. So its quantiles
    are stretched about the mean to the unbiased variance, times Student's t over the normal's. tests/test_statistics.py
    simulates the coverage. Where all cells are equal nothing varies, and the bound is Wilson's for the images alone.
    """
    mean, parts = float(table.mean()), spread(table)
    if parts.of_mean == 0:
        return _without_spread(mean, parts.images, within)
    resampled = _resampled(table)
    width = float(resampled.std())
    df = parts.degrees_of_freedom
    wider = stats.t.ppf(1 - LEVEL / 2, df) / stats.norm.ppf(1 - LEVEL / 2)
    stretch = math.sqrt(parts.of_mean) * wider / width if width > 0 else 0.0
    low, high = np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2]) - mean
    lowest, highest = within
    return Interval(
        mean, float(max(lowest, mean + stretch * float(low))), float(min(highest, mean + stretch * float(high)))
    )


def _resampled(table: Table) -> NDArray[np.float64]:
    """Means of tables of seeds and images drawn with replacement."""
    seeds, images = table.shape
    of_seeds = np.random.default_rng(seeds).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    by_seed = table if images == 1 else table.astype(np.float32) @ _images_drawn(images)
    return np.asarray((by_seed * of_seeds.T).sum(axis=0), dtype=np.float64)


@lru_cache(maxsize=2)
def _images_drawn(images: int) -> NDArray[np.float32]:
    """How much each image counts in each resample, (images, RESAMPLES), the same for all tables of so many images. From
    Poisson's distribution, which takes a tenth of a multinomial's time.
    """
    drawn = np.random.default_rng(images).poisson(1.0, size=(images, RESAMPLES)).astype(np.float32)
    counted: NDArray[np.float32] = drawn / np.maximum(1, drawn.sum(axis=0))
    return counted


def _without_spread(mean: float, images: int, within: tuple[float, float]) -> Interval:
    """Of accuracies of 0 or 1 on all images (Wilson's bound); a difference of nothing, or single numbers, as it is."""
    if within == (0.0, 1.0) and images > 1 and mean in (0.0, 1.0):
        z2 = stats.norm.ppf(1 - LEVEL / 2) ** 2
        bound = z2 / (images + z2)
        return Interval(mean, 0.0 if mean == 0 else 1 - bound, bound if mean == 0 else 1.0)
    return Interval(mean, mean, mean)


def sign_flip(by_seed: NDArray[np.float64]) -> float:
    """The two-sided p-value of the exact test that flips the signs of differences paired by seed. With n seeds it is
    never below 2 / 2^n.
    """
    if len(by_seed) < 2 or not by_seed.any():
        return 1.0
    exact = len(by_seed) <= MAX_EXACT_SEEDS
    found = stats.permutation_test(
        (by_seed,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=math.inf if exact else 99_999,
        alternative="two-sided",
        random_state=0,
    )
    return float(found.pvalue)


def p_value(differences: Table) -> float:
    """Of the claim that two configurations differ: the larger of two p-values, so that neither luck with the seeds nor
    luck with the images is taken for a difference. One is `sign_flip` of the seeds' means; the other is Student's, of
    the variance that both seeds and images add.
    """
    parts = spread(differences)
    mean = float(differences.mean())
    if mean == 0 or parts.seeds < 2:
        return 1.0
    t = abs(mean) / math.sqrt(parts.of_mean) if parts.of_mean > 0 else math.inf
    by_both = 2 * float(stats.t.sf(t, parts.degrees_of_freedom))
    return float(max(sign_flip(differences.mean(axis=1)), by_both))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, 1979): at most 5 % of families of true null hypotheses have one below 0.05."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def fewest_seeds(claims: int) -> int:
    """With fewer, not even the clearest differences could pass the sign-flip test, corrected for so many claims."""
    return math.ceil(math.log2(2 * claims / LEVEL))


def seeds_needed(differences: Table, claims: int, images: int | None = None) -> int | None:
    """How many seeds would tell a difference as large as was seen, in 8 of 10 confirmations; None if no number would,
    because the images are too few. images: how many, as many as there are unless given.
    """
    mean, parts = abs(float(differences.mean())), spread(differences)
    for seeds in range(max(2, fewest_seeds(claims)), MAX_SEEDS):
        if mean >= _detectable(parts.variance(seeds, images or parts.images), seeds, claims):
            return seeds
    return None


def images_needed(differences: Table, claims: int) -> int | None:
    """The same for images, with as many seeds; None if more images would not do."""
    mean, parts = abs(float(differences.mean())), spread(differences)
    factor = 1.0
    while factor <= MAX_SEEDS:
        images = math.ceil(parts.images * factor)
        if mean >= _detectable(parts.variance(parts.seeds, images), parts.seeds, claims):
            return images
        factor *= 1.1
    return None


def _detectable(variance: float, seeds: int, claims: int) -> float:
    t = stats.t.ppf(1 - LEVEL / (2 * claims), max(1, seeds - 1)) + stats.norm.ppf(POWER)
    return math.sqrt(variance) * float(t)
