"""The contract of every perturbation, and what each one does to the pixels."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.doors.perturbation import LEVELS, PERTURBATIONS, AdaptivePerturbation, LeveledPerturbation, Perturbation
from hpo.errors import InputError
from hpo.vision import scoring
from hpo.vision.random_bits import derive_keys, normal, uniform
from hpo.vision.training.augmentation import SEVERITY_AT_FULL_STRENGTH, Augmentation

NATURAL = [name for name, kind in PERTURBATIONS.loadable().items() if not issubclass(kind, AdaptivePerturbation)]
"""Those that need no network; the others are in test_attacks.py."""
names = st.sampled_from(NATURAL)
WITHOUT_CHANCE = {
    *("brightness", "contrast", "saturate", "pixelate", "jpeg", "gaussian-blur", "defocus-blur", "zoom-blur")
}
severities = st.floats(0, 1)
"""As shares of the largest severity that images are trained with."""
shapes = st.tuples(st.integers(1, 9), st.integers(1, 17), st.integers(1, 17))


def perturb(name: str, pixels: torch.Tensor, image_keys: torch.Tensor, severity: float, replicate: int) -> torch.Tensor:
    return scoring.perturb(PERTURBATIONS.find(name), name, pixels, image_keys, severity, replicate)


def largest(name: str) -> float:
    """Twice the scored severity at the benchmark's highest level; 1 where it has none."""
    kind = PERTURBATIONS.find(name)
    if not issubclass(kind, LeveledPerturbation):
        return 1.0
    levels = [kind.model_validate({"name": name, "level": level, "weight": 1}) for level in range(1, LEVELS + 1)]
    return SEVERITY_AT_FULL_STRENGTH * max(level.scored_severity for level in levels)


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def keys(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64)


@given(names, severities, shapes)
def test_shape_range_and_input_are_kept(name: str, severity: float, shape: tuple[int, int, int]) -> None:
    pixels = images(*shape)
    before = pixels.clone()
    perturbed = perturb(name, pixels, keys(shape[0]), severity * largest(name), replicate=0)
    assert perturbed.shape == pixels.shape
    assert perturbed.dtype == torch.float32
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert torch.equal(pixels, before)


@given(names, shapes)
def test_severity_0_is_the_identity(name: str, shape: tuple[int, int, int]) -> None:
    pixels = images(*shape)
    assert torch.equal(perturb(name, pixels, keys(shape[0]), 0.0, replicate=0), pixels)


@given(names, severities, st.integers(2, 40), st.data())
@settings(max_examples=50, deadline=None)
def test_an_image_is_perturbed_alike_in_any_batch_and_order(
    name: str, severity: float, count: int, data: st.DataObject
) -> None:
    pixels, all_keys = images(count, 12, 10), keys(count)
    severity *= largest(name)
    together = perturb(name, pixels, all_keys, severity, replicate=3)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    size = data.draw(st.integers(1, count))
    for chosen in order.split(size):
        assert torch.equal(perturb(name, pixels[chosen], all_keys[chosen], severity, replicate=3), together[chosen])


@pytest.mark.parametrize("name", sorted(set(NATURAL) - WITHOUT_CHANCE))
def test_replicates_images_and_perturbations_draw_differently(name: str) -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    first = perturb(name, pixels, keys(2), 0.2, replicate=0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, perturb(name, pixels, keys(2), 0.2, replicate=1))
    other = derive_keys(keys(2), "another purpose")
    assert not torch.equal(uniform(keys(2), 8), uniform(other, 8))


@pytest.mark.parametrize("name", sorted(WITHOUT_CHANCE))
def test_what_has_no_chance_in_it_is_the_same_in_all_replicates(name: str) -> None:
    pixels = images(2, 16, 16)
    first, second = (perturb(name, pixels, keys(2), largest(name) / 2, replicate) for replicate in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, pixels)


@given(st.floats(0, 1), st.integers(1, 6), st.integers(2, 20), st.integers(2, 20))
def test_recolouring_touches_exactly_its_share_of_the_pixels(
    fraction: float, count: int, height: int, width: int
) -> None:
    pixels = torch.full((count, 3, height, width), 1.0)  # a colour that no draw gives
    touched = (perturb("pixel-recolor", pixels, keys(count), fraction, replicate=0) != pixels).any(1).flatten(1).sum(1)
    expected = int((torch.tensor(fraction) * (height * width)).round())
    assert touched.tolist() == [expected] * count


def test_recoloured_pixels_are_spread_evenly_over_place_and_colour() -> None:
    pixels = torch.ones(2000, 3, 8, 8)
    perturbed = perturb("pixel-recolor", pixels, keys(2000), 0.25, replicate=0)
    share_by_place = (perturbed != 1).any(1).float().mean(0)
    assert share_by_place.sub(0.25).abs().max() < 0.05  # 5 standard deviations of a share of 2,000
    colours = perturbed[perturbed != 1]
    assert colours.mean().item() == pytest.approx(0.5, abs=0.005)
    assert colours.var().item() == pytest.approx(1 / 12, abs=0.002)


@given(st.floats(0.01, 0.1))
@settings(max_examples=20, deadline=None)
def test_the_noise_has_the_moments_of_a_normal_distribution(sigma: float) -> None:
    pixels = torch.full((64, 3, 32, 32), 0.5)
    noise = (perturb("gaussian-noise", pixels, keys(64), sigma, replicate=0) - 0.5) / sigma
    assert noise.mean().item() == pytest.approx(0, abs=0.012)  # 5 standard deviations of the mean of 196,608
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert noise.pow(3).mean().item() == pytest.approx(0, abs=0.05)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.12)
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean().item()
    assert neighbours == pytest.approx(0, abs=0.012)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4, unique=True), st.integers(1, 33))
def test_random_numbers_stay_in_their_range_for_any_key(some_keys: list[int], count: int) -> None:
    tensor = torch.tensor(some_keys, dtype=torch.int64)
    draws = uniform(tensor, count)
    assert draws.shape == normal(tensor, count).shape == (len(some_keys), count)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert normal(tensor, count).isfinite().all()
    assert torch.equal(uniform(tensor, count + 5)[:, :count], draws)


class Striped(Perturbation):
    """Its settings are more than a severity, and it can do nothing with no image."""

    rows: float
    every: int = 2
    severity = "rows"

    def apply(self, pixels: torch.Tensor, keys: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        assert len(pixels), "asked for nothing"
        changed = pixels.clone()
        changed[:, :, :: self.every] *= (1 - severity.view(-1, 1, 1, 1)).clamp(min=0)
        return changed


def test_a_perturbation_finds_its_other_settings_in_itself() -> None:
    striped = Striped(name="striped", weight=0.5, rows=1, every=3)
    black = scoring.perturb(striped, "striped", images(2, 9, 9), keys(2), 1.0, replicate=0) == 0
    assert black.all(3).all(1).tolist() == [[row % 3 == 0 for row in range(9)]] * 2


def test_a_perturbation_is_not_asked_to_change_no_image() -> None:
    augment = Augmentation(1.0, [Striped(name="striped", weight=0.5, rows=1)], False, perturbed_share=0.2)
    pixels = (images(1, 8, 8) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    for number in range(9):
        assert augment(pixels, torch.tensor([number]), seed=0, epoch=1).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda pixels: None, "made None of images; its apply must return a tensor"),
        (lambda pixels: pixels[:, :1], "its apply must keep both"),
        (lambda pixels: pixels.double(), "its apply must keep both"),
        (lambda pixels: pixels + 1, r"made pixels from 1\S+ to 1\S+; its apply must keep to \[0, 1\]"),
        (lambda pixels: pixels * float("nan"), "made pixels from nan to nan"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(made: Any, words: str) -> None:
    class Wrong(Striped):
        def apply(self, pixels: torch.Tensor, keys: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return made(pixels)

    wrong = Wrong(name="wrong", weight=0.5, rows=1)
    with pytest.raises(InputError, match=words):
        scoring.perturb(wrong, "wrong", images(2, 9, 9), keys(2), 1.0, replicate=0)
