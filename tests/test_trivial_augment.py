"""TrivialAugment by groups of images: each operation is torchvision's, and all occur."""

from dataclasses import replace

import pytest
import torch
from support.perturbations import perturbations
from support.studies import make_spec
from test_augmentation import images
from test_step import Watched
from torchvision.transforms.v2 import TrivialAugmentWide

from hpo.doors.perturbation import PERTURBATIONS as DOOR
from hpo.doors.perturbation import AdaptivePerturbation
from hpo.vision.training.augmentation import Augmentation, Chosen
from hpo.vision.training.trivial_augment import LEVELS, OPERATIONS, by_operation, draw_operations

THEIRS = TrivialAugmentWide()


def blurred(count: int, height: int, width: int) -> torch.Tensor:
    """uint8 (n, height, width, 3), with edges, gradients and few values, as photographs have."""
    noise = torch.rand(count, 3, height + 6, width + 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1).sub(0.5).mul(3).add(0.5).clamp(0.1, 0.8)
    return smooth.mul(255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=list(THEIRS._AUGMENTATION_SPACE))
def test_each_operation_is_torchvisions(number: int) -> None:
    name, (magnitudes, signed) = list(THEIRS._AUGMENTATION_SPACE.items())[number]
    settings = [(level, sign) for level in range(LEVELS) for sign in (1, -1)]
    pixels = blurred(len(settings), 24, 20)
    pixels[0] = 77  # of one colour
    drawn = torch.tensor([[number, level / (LEVELS - 1), sign] for level, sign in settings])
    ours = by_operation(drawn)(pixels)
    magnitude = magnitudes(LEVELS, 24, 20)
    for image, made, (level, sign) in zip(pixels, ours, settings, strict=True):
        strength = 0.0 if magnitude is None else float(magnitude[level]) * (sign if signed else 1)
        if name.startswith("Translate"):
            strength = round(strength, 4)  # linspace has 15.999999
        if name == "Solarize":
            strength = max(0, strength - 1e-6)  # as a threshold, 119.000001
        by_channel = image.permute(2, 0, 1)
        expected = THEIRS._apply_image_or_video_transform(by_channel, name, strength, THEIRS.interpolation, {})
        difference = (made.permute(2, 0, 1).int() - expected.int()).abs().amax(0)
        nearly = 0 if number in range(1, 6) else 1  # values may be rounded otherwise, or the pixel beside it be taken
        assert (difference > nearly).float().mean() < 0.02, (name, strength)


def test_operations_levels_and_signs_are_drawn_evenly_and_an_image_is_changed_alike_in_any_batch() -> None:
    which, level, sign = draw_operations(torch.arange(14_000)).drawn.unbind(1)
    assert which.long().bincount().tolist() == pytest.approx([1000] * 14, abs=120)
    assert (level * 30).round().long().bincount().tolist() == pytest.approx([14_000 / 31] * 31, abs=90)
    assert sign.mean().item() == pytest.approx(0, abs=0.03)
    augment = Augmentation(0.7, perturbations(sigma=0.1, fraction=0.05), True, trivial_augment=True)
    pixels, keys = images(60)
    together = augment(pixels, keys, seed=1, epoch=2)
    for chosen in torch.arange(60).split(7):
        assert torch.equal(augment(pixels[chosen], keys[chosen], seed=1, epoch=2), together[chosen])
    twins = augment.apply(pixels, augment.plan(keys, 1, 2).unperturbed)
    assert torch.equal(twins, replace(augment, strength=0.0)(pixels, keys, seed=1, epoch=2))


def test_nothing_is_read_from_the_device() -> None:
    pixels, keys = images(200)
    augment = Augmentation(0.0, [], True, trivial_augment=True)
    plan = augment.plan(keys, 0, 1)
    assert plan.operations is not None
    assert all(plan.operations.counts)
    with Watched():
        augment.apply(pixels, plan)


def test_what_is_chosen_by_gradient_is_augmented_as_its_image() -> None:
    pixels, keys = images(60)
    noise = DOOR.find("adversarial-noise").model_validate({"name": "adversarial-noise", "weight": 1.0})
    augment = Augmentation(1.0, [noise], True, trivial_augment=True)
    seen = []

    def by_gradient(perturbation: AdaptivePerturbation, some: Chosen) -> torch.Tensor:
        seen.append(torch.equal(some.move(pixels[some.positions]), some.pixels))
        return some.pixels

    augment.apply(pixels, augment.plan(keys, 0, 1), by_gradient)
    assert seen == [True]


def test_a_study_without_it_is_what_it_was() -> None:
    assert "trivial_augment" not in make_spec().model_dump(mode="json")["training"]
    on = make_spec(training={"epochs": 3, "trivial_augment": True})
    assert on.model_dump(mode="json")["training"]["trivial_augment"] is True
    assert on.identity() != make_spec(training={"epochs": 3}).identity()
