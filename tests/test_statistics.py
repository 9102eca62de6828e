"""The statistics of confirmations, on simulated outcomes: coverage, false claims, power, and exact small cases."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from hpo.conclude.statistics import (
    fewest_seeds,
    holm,
    images_needed,
    interval,
    p_value,
    seeds_needed,
    sign_flip,
    spread,
)

SEEDS, IMAGES, SIMULATIONS = 8, 2500, 1000
SEED_NOISE = 0.0066
"""Standard deviation of an accuracy over seeds (../shared/robustness-facts.md)."""


def trained(random: np.random.Generator, difficulty: NDArray[np.float64], gain: float = 0.0) -> NDArray[np.float64]:
    """Outcomes of one configuration on images of these difficulties: each configuration has images of its own that are
    easier or harder for it, and each training is a little better or worse.
    """
    own = expit(difficulty + random.normal(0, 0.5, len(difficulty)))
    chances = own + random.normal(0, SEED_NOISE, (SEEDS, 1)) + gain
    return (random.random((SEEDS, len(difficulty))) < chances).astype(float)


def simulated(random: np.random.Generator, gain: float = 0.0) -> NDArray[np.float64]:
    """Differences of two configurations whose accuracies, on all images there are, differ by `gain`."""
    difficulty = random.normal(0.4, 1.5, IMAGES)
    return trained(random, difficulty, gain) - trained(random, difficulty)


@pytest.fixture(scope="module")
def without_difference() -> list[NDArray[np.float64]]:
    random = np.random.default_rng(1)
    return [simulated(random).astype(np.int8) for _ in range(SIMULATIONS)]


def test_intervals_cover_the_truth_in_93_to_97_percent(without_difference: list[NDArray[np.float64]]) -> None:
    found = [interval(table.astype(float)) for table in without_difference]
    assert 0.93 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.97


def test_without_a_difference_at_most_5_percent_of_confirmations_claim_one(
    without_difference: list[NDArray[np.float64]],
) -> None:
    """Confirmations of four conditions, whichever of them is claimed."""
    p_values = [p_value(table.astype(float)) for table in without_difference]
    assert np.mean([p <= 0.05 for p in p_values]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / SIMULATIONS)
    families = [holm(p_values[start : start + 4]) for start in range(0, SIMULATIONS, 4)]
    assert np.mean([min(family) <= 0.05 for family in families]) <= 0.05


def test_a_difference_of_3_points_is_found() -> None:
    random = np.random.default_rng(2)
    tables = [simulated(random, gain=0.03) for _ in range(100)]
    assert np.mean([p_value(table) * 4 <= 0.05 for table in tables]) > 0.8  # as the hardest of four conditions
    assert np.mean([interval(table).low > 0 for table in tables]) > 0.9


def test_seeds_and_images_are_told_apart() -> None:
    random = np.random.default_rng(3)
    seeds, images = random.normal(0, 0.02, (40, 1)), random.normal(0, 0.3, (1, 4000))
    found = spread(seeds + images + random.normal(0, 0.4, (40, 4000)))
    expected = [seeds.var(ddof=1), images.var(ddof=1), 0.4**2]
    assert [found.of_seeds, found.of_images, found.rest] == pytest.approx(expected, rel=0.1)
    assert found.of_mean == pytest.approx(found.variance(40, 4000))


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8))
def test_the_sign_flip_test_is_exact(differences: list[int]) -> None:
    by_seed = np.array(differences, dtype=float)
    flipped = [
        abs(sum(sign * each for sign, each in zip(signs, by_seed, strict=True)))
        for signs in product([1, -1], repeat=len(by_seed))
    ]
    expected = np.mean([total >= abs(by_seed.sum()) for total in flipped])
    assert sign_flip(by_seed) == pytest.approx(expected if by_seed.any() else 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_all_families(p_values: list[float]) -> None:
    """A hypothesis is rejected if Bonferroni rejects every family that it is in (Marcus, Peritz and Gabriel, 1976)."""
    places = range(len(p_values))
    families = [family for size in places for family in combinations(places, size + 1)]
    expected = [
        max(min(1.0, len(family) * min(p_values[i] for i in family)) for family in families if place in family)
        for place in places
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_the_clearest_differences_need_so_many_seeds() -> None:
    clear = np.ones((1, 100))
    for claims in range(1, 10):
        fewest = fewest_seeds(claims)
        assert holm([p_value(np.repeat(clear, fewest, 0))] * claims)[0] <= 0.05
        assert holm([p_value(np.repeat(clear, fewest - 1, 0))] * claims)[0] > 0.05
    assert fewest_seeds(4) == 8


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.0016), (1.0, 0.9984, 1.0)])
def test_all_images_alike_still_leave_doubt(value: float, low: float, high: float) -> None:
    found = interval(np.full((3, 2500), value), (0.0, 1.0))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_an_interval_holds_its_mean_and_keeps_to_what_is_possible(
    seeds: int, images: int, seed: int, share: float
) -> None:
    table = (np.random.default_rng(seed).random((seeds, images)) < share).astype(float)
    found = interval(table, (0.0, 1.0))
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found == interval(table, (0.0, 1.0))


def test_what_cannot_be_told_says_what_could() -> None:
    random = np.random.default_rng(4)
    small = simulated(random, gain=0.006)
    more = seeds_needed(small, 4), images_needed(small, 4)
    assert any(each is not None for each in more)
    assert seeds_needed(simulated(random, gain=0.1), 4) == 8
    nothing = np.zeros((8, 100))
    nothing[0, 0] = 1
    assert seeds_needed(nothing, 4) is None or seeds_needed(nothing, 4) > 8  # type: ignore[operator]
