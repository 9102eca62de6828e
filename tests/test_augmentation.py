"""Training-time augmentation: what strength means, and that it does not depend on the batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.perturbations import perturbations

from hpo.doors.perturbation import PERTURBATIONS as DOOR
from hpo.doors.perturbation import AdaptivePerturbation
from hpo.vision.training.augmentation import Augmentation, Chosen

PERTURBATIONS = perturbations(sigma=0.1, fraction=0.05)


def images(count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return pixels, torch.arange(count, dtype=torch.int64)


@given(
    st.floats(0, 1),
    st.booleans(),
    st.integers(2, 40),
    st.sampled_from([0.2, 0.7, 1.0]),
    st.sampled_from(["uniform", "beta"]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_an_image_is_augmented_alike_in_any_batch(
    strength: float, flip: bool, count: int, area: float, draw: str, data: st.DataObject
) -> None:
    augment = Augmentation(strength, PERTURBATIONS, flip, perturbed_area=area, severity_draw=draw)
    pixels, keys = images(count)
    together = augment(pixels, keys, seed=1, epoch=2)
    assert together.shape == (count, 3, 16, 16)
    assert together.min() >= 0
    assert together.max() <= 1
    for chosen in torch.arange(count).split(data.draw(st.integers(1, count))):
        assert torch.equal(augment(pixels[chosen], keys[chosen], seed=1, epoch=2), together[chosen])


def test_strength_0_only_flips_and_shifts() -> None:
    pixels, keys = images(64)
    augmented = Augmentation(0.0, PERTURBATIONS, True)(pixels, keys, seed=0, epoch=1)
    originals = pixels.permute(0, 3, 1, 2).float() / 255
    candidates = [
        torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")[..., y : y + 16, x : x + 16]
        for image in (originals, originals.flip(3))
        for y in range(3)
        for x in range(3)
    ]
    matches = torch.stack([(candidate == augmented).flatten(1).all(1) for candidate in candidates])
    assert matches.any(0).all()
    assert matches.any(1).all(), "every flip and shift occurs"


def test_about_half_of_the_images_are_perturbed_each_by_one_family() -> None:
    pixels, keys = images(4000, 8)
    plain = Augmentation(0.0, PERTURBATIONS, False)(pixels, keys, seed=0, epoch=1)
    augmented = Augmentation(1.0, PERTURBATIONS, False)(pixels, keys, seed=0, epoch=1)
    share_of_pixels = (augmented != plain).any(1).flatten(1).float().mean(1)
    assert (share_of_pixels > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (share_of_pixels > 0.5).float().mean().item() == pytest.approx(0.25, abs=0.04)  # noise: on every pixel
    recoloured = share_of_pixels[(share_of_pixels > 0) & (share_of_pixels < 0.5)]
    assert recoloured.max() <= 0.11  # strength 1: up to twice the 5 % that are scored
    noise = (augmented - plain)[share_of_pixels > 0.5]
    assert noise.flatten(1).std(1).max() < 0.23


def test_epochs_and_seeds_differ() -> None:
    augment = Augmentation(0.5, PERTURBATIONS, True)
    pixels, keys = images(8)
    first = augment(pixels, keys, seed=0, epoch=1)
    assert not torch.equal(first, augment(pixels, keys, seed=0, epoch=2))
    assert not torch.equal(first, augment(pixels, keys, seed=1, epoch=1))


@pytest.mark.parametrize(("draw", "expected"), [("uniform", stats.uniform()), ("beta", stats.beta(2, 5))])
def test_severities_are_drawn_as_is_said(draw: str, expected: Any) -> None:
    plan = Augmentation(0.5, PERTURBATIONS, False, severity_draw=draw).plan(torch.arange(4000), seed=0, epoch=1)
    noise, recoloured, _ = plan.severities.split([*plan.counts, 4000 - sum(plan.counts)])
    shares = torch.cat([noise / 0.1, recoloured / 0.05])  # at half strength the largest severities are those scored
    assert stats.kstest(shares, expected.cdf).pvalue > 0.01


@pytest.mark.parametrize("smallest", [0.2, 0.8])
@pytest.mark.parametrize("by_gradient", [False, True], ids=["noise", "chosen by gradient"])
def test_a_perturbation_is_confined_to_a_rectangle(smallest: float, by_gradient: bool) -> None:
    family = DOOR.find("adversarial-noise" if by_gradient else "gaussian-noise")
    perturbation = family.model_validate({"name": family.__name__, "weight": 1.0, "sigma": 0.1})
    pixels, keys = images(1500)
    augment = Augmentation(1.0, [perturbation], True, perturbed_share=1.0, perturbed_area=smallest)
    plan = augment.plan(keys, seed=0, epoch=1)
    plain = replace(augment, strength=0.0)(pixels, keys, seed=0, epoch=1)
    changed = (augment.apply(pixels, plan, _inverted) != plain).any(1)
    rows, columns = changed.any(2), changed.any(1)
    tall, wide = (_first_to_last(some) for some in (rows, columns))
    if by_gradient:
        assert torch.equal(changed.flatten(1).sum(1), tall * wide), "all of the rectangle"
    share = (tall * wide / 256)[tall * wide > 0]
    assert share.min() >= smallest - 0.1, "sides are whole numbers of pixels"
    assert share.max() == 1
    assert share.mean().item() == pytest.approx((1 + smallest) / 2, abs=0.02)
    assert (wide > 1.5 * tall).any() == (tall > 1.5 * wide).any() == (smallest < 0.5)
    middles = [(some.long().argmax(1) + length / 2).mean() for some, length in ((rows, tall), (columns, wide))]
    assert [middle.item() for middle in middles] == pytest.approx([8, 8], abs=0.15)


def _inverted(perturbation: AdaptivePerturbation, some: Chosen) -> torch.Tensor:
    return 1 - some.pixels


def _first_to_last(some: torch.Tensor) -> torch.Tensor:
    """Of bool (n, positions): from the first true one to the last, int64 (n,)."""
    positions = torch.arange(some.shape[1])
    first = torch.where(some, positions, some.shape[1]).amin(1)
    return (torch.where(some, positions, -1).amax(1) - first + 1).clamp(min=0)
