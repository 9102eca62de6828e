"""Training-time augmentation: what strength means, and that it does not depend on the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.perturbations import perturbations

from hpo.vision.training.augmentation import Augmentation

PERTURBATIONS = perturbations(sigma=0.1, fraction=0.05)


def images(count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return pixels, torch.arange(count, dtype=torch.int64)


@given(st.floats(0, 1), st.booleans(), st.integers(2, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_an_image_is_augmented_alike_in_any_batch(strength: float, flip: bool, count: int, data: st.DataObject) -> None:
    augment = Augmentation(strength, PERTURBATIONS, flip)
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
