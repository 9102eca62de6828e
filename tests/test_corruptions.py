"""Tiny-ImageNet-C's families against an implementation of their own, and their levels in study files."""

import math
from pathlib import Path
from typing import Any

import corruption_references as references
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.commands import Hpo
from support.studies import write_study

import hpo
from hpo.doors.perturbation import PERTURBATIONS, LeveledPerturbation
from hpo.vision.random_bits import derive_keys, uniform
from hpo.vision.scoring import perturb

FAMILIES = {name: kind for name, kind in PERTURBATIONS.loadable().items() if issubclass(kind, LeveledPerturbation)}
RANDOM = ("fog", "gaussian-noise", "impulse-noise", "shot-noise", "speckle-noise")
LEVELS = [1, 2, 3, 4, 5]
COUNT = 64


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth coloured shapes with sharp edges, in 8 bits: float32 (64, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)
    shapes = torch.nn.functional.interpolate(torch.rand(COUNT, 3, 9, 9, generator=generator), size=64, mode="nearest")
    pictures = torch.where(shapes[:, :1] > 0.6, shapes, smooth)
    pictures[:4] = pictures[:4, :1]  # grey
    pictures[4] = 0
    pictures[5] = 1
    return (pictures * 255).round() / 255


def at(name: str, level: int) -> Any:
    return FAMILIES[name].model_validate({"name": name, "level": level, "weight": 0.5})


def perturbed(images: torch.Tensor, name: str, level: int) -> torch.Tensor:
    family = at(name, level)
    return perturb(type(family), name, images, torch.arange(len(images)), family.scored_severity, replicate=0)


def reference(name: str) -> Any:
    return getattr(references, name.replace("-", "_"))


def test_there_is_a_reference_for_every_family() -> None:
    assert all(callable(reference(name)) for name in FAMILIES)
    assert len(FAMILIES) == 14


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(RANDOM)))
def test_a_family_without_chance_is_the_reference(images: torch.Tensor, name: str, level: int) -> None:
    ours = perturbed(images, name, level).permute(0, 2, 3, 1).double().numpy()
    settings = [getattr(at(name, level), FAMILIES[name].severity)]
    keys = derive_keys(torch.arange(len(images)), name, "replicate", 0)
    angles = ((2 * uniform(keys, 1)[:, 0] - 1) * 45).tolist()
    for number, picture in enumerate(images.permute(0, 2, 3, 1).double().numpy()):
        more = [angles[number]] if name == "motion-blur" else []
        expected = reference(name)(picture, *settings, *more)
        difference = np.abs(ours[number] - expected).mean()
        assert difference < 1 / 255, number
        assert difference < 0.1 / 255 or name in ("pixelate", "jpeg"), number  # those round in between


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", RANDOM)
def test_a_random_family_has_the_moments_of_the_reference(images: torch.Tensor, name: str, level: int) -> None:
    random = np.random.default_rng(level)
    setting = getattr(at(name, level), FAMILIES[name].severity)
    plain = images.permute(0, 2, 3, 1).double().numpy()
    ours = perturbed(images, name, level).permute(0, 2, 3, 1).double().numpy() - plain
    theirs = np.stack([reference(name)(picture, setting, random) for picture in plain]) - plain
    near = 0.03 if name == "fog" else 0.004  # 64 clouds, whose means vary
    assert ours.mean() == pytest.approx(theirs.mean(), abs=near)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.04)
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 0.9)):  # at dark, middle and bright values
        where = (plain > low) & (plain <= high)
        assert ours[where].mean() == pytest.approx(theirs[where].mean(), abs=near)
        assert ours[where].std() == pytest.approx(theirs[where].std(), rel=0.06)
    if name != "fog":
        values = np.quantile(ours, (0.01, 0.1, 0.5, 0.9, 0.99)), np.quantile(theirs, (0.01, 0.1, 0.5, 0.9, 0.99))
        assert np.abs(values[0] - values[1]).max() < 0.02


def test_fog_is_as_rough_as_the_reference_at_every_scale(images: torch.Tensor) -> None:
    random = np.random.default_rng(0)
    white = torch.ones(COUNT, 3, 64, 64)
    for level in LEVELS:
        ours = perturbed(white, "fog", level)[:, 0].double().numpy()
        strength = at("fog", level).strength
        theirs = np.stack([references.fog(np.ones((64, 64, 3)), strength, random)[..., 0] for _ in range(COUNT)])
        for distance in (1, 4, 16):
            rough = [np.abs(np.roll(each, distance, axis=2) - each).mean() for each in (ours, theirs)]
            assert rough[0] == pytest.approx(rough[1], rel=0.1)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_level_stands_for_the_benchmarks_setting(name: str) -> None:
    kind = FAMILIES[name]
    for level, setting in zip(LEVELS, kind.levels, strict=True):
        given = at(name, level)
        assert getattr(given, kind.severity) == setting
        assert given.model_dump() == {"name": name, "weight": 0.5, kind.severity: setting}
        assert given.scored_severity > 0
        assert math.isfinite(given.scored_severity)


def test_a_study_file_with_a_level_is_submitted_again(hpo_here: Hpo, tmp_path: Path) -> None:
    """As after an interruption; what the level stands for says the same."""
    study = write_study(tmp_path)
    for setting in ("level = 3", "level = 3", "strength = 1.0"):
        fog = f"objective.perturbations=[{{name = 'fog', {setting}, weight = 0.5}}]"
        submitted = hpo_here(
            "submit", study, "--set", fog, "--set", f"augmentation.perturbations=[{{name = 'fog', {setting}}}]"
        )
        assert submitted.returncode == 0, submitted.stderr


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_setting_is_the_same_from_python(name: str) -> None:
    """Where the smaller the stronger, too."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    setting = getattr(at(name, 2), FAMILIES[name].severity)
    expected = perturbed(images, name, 2)
    assert torch.equal(hpo.perturb(name, images, setting), expected)
    assert torch.equal(hpo.perturb(name, images, level=2), expected)
    assert len(hpo.perturb(name, images[:0], level=2)) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"severity": 101}, "perturbation 'jpeg': quality: must be less than or equal to 99, not 101"),
        ({"level": 6}, "level: must be less than or equal to 5, not 6"),
        ({"level": 1, "severity": 50}, "level and quality say the same"),
        ({}, "perturbation 'jpeg': give quality, or level = 1 to 5"),
    ],
)
def test_a_wrong_setting_from_python_is_one_line(given: dict[str, int], expected: str) -> None:
    with pytest.raises(hpo.InputError) as refused:
        hpo.perturb("jpeg", torch.rand(2, 3, 16, 16), **given)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("level", [0, 6, -1, 2.5, "high", True, [1]])
def test_a_level_that_there_is_not_is_refused(level: object) -> None:
    with pytest.raises(ValidationError, match="level"):
        at("fog", level)  # type: ignore[arg-type]


def test_a_level_and_a_severity_say_the_same() -> None:
    with pytest.raises(ValidationError, match="level and sigma say the same; give one of them"):
        FAMILIES["gaussian-blur"].model_validate({"name": "gaussian-blur", "level": 1, "sigma": 1, "weight": 0.5})
