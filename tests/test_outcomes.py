"""What a network makes of the locked test images: on each condition the same counts as scoring gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from hpo.doors.perturbation import PERTURBATIONS, AdaptivePerturbation
from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.classifier import build_network
from hpo.vision.data.images import load_images
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.outcomes import Examined, outcomes_of
from hpo.vision.scoring import build_evaluation_set, evaluate

COMPUTE = Compute(torch.device("cpu"), bf16=False)
SETTINGS = {
    "gaussian-noise": {"sigma": 0.3},
    "pixel-recolor": {"fraction": 0.2},
    "shot-noise": {"level": 3},
    "fgsm": {"epsilon": 0.02, "against": "self", "images": 20},
    "pgd": {"epsilon": 0.02, "steps": 3, "images": 30},
}


def examined(data_root: Path, **changes: Any) -> Examined:
    images = load_images(DataSpec(name="digits", root=str(data_root), split_seed=0), 16, 0)
    network = build_network("resnet18", 10, {}, 16, 0, seed=3).eval()
    members = [PERTURBATIONS.find(name)(name=name, weight=0.1, **given) for name, given in SETTINGS.items()]
    given = {"against_baseline": {}, "replicate": 7, "test_sets": (), "diverged": False, "say": lambda text: None}
    return Examined(network, COMPUTE, images, members, **{**given, **changes})


@pytest.mark.usefixtures("narrow_resnets")
def test_counts_are_those_of_scoring_at_every_severity(data_root: Path) -> None:
    asked = examined(data_root)
    found = {(each.condition, each.severity): each for each in outcomes_of(asked)}
    assert {name for name, _ in found} == {
        *("clean", "gaussian-noise", "pixel-recolor", "shot-noise"),
        *("fgsm", "pgd against itself", "adversarial-noise against itself", "adversarial-pixels against itself"),
    }
    classify = Inference(asked.network, COMPUTE)
    for member in asked.perturbations:
        if isinstance(member, AdaptivePerturbation):
            continue
        variants = member.variants()
        assert [each for each in variants if found[member.name, each.setting].main] == [member]
        for variant in variants:
            images = build_evaluation_set(asked.images.test, [variant], COMPUTE.device, replicate=7)
            expected = evaluate(classify, images)
            outcome = found[member.name, variant.setting]
            assert outcome.right is not None
            assert (int(outcome.right.sum()), len(outcome.right)) == (expected[member.name].correct, 359)
            assert outcome.value == expected[member.name].fraction
    assert len(found["fgsm", 0.02].right) == 20  # type: ignore[arg-type]
    assert found["fgsm", 0.02].main
    assert not found["pgd against itself", 0.02].main
    clean = found["clean", None].right
    assert clean is not None
    assert found["fgsm", 0.02].value <= clean[np.arange(20) * 359 // 20].mean(), (
        "what is chosen by gradient is no easier"
    )
    others = outcomes_of(examined(data_root, replicate=8))
    noise = next(each for each in others if (each.condition, each.severity) == ("gaussian-noise", 0.3))
    assert not np.array_equal(noise.right, found["gaussian-noise", 0.3].right), "another seed draws other noise"  # type: ignore[arg-type]


@pytest.mark.usefixtures("narrow_resnets")
def test_sets_from_disk_are_conditions_of_their_own(data_root: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for level in (1, 2):
        for name in "0123456789":
            folder = tmp_path / "digits-c" / "fog" / str(level) / name
            folder.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "a.png")
    few = {"perturbations": [], "test_sets": (str(tmp_path / "digits-c"),)}
    asked = examined(data_root)
    asked = Examined(**{**vars(asked), **few})
    found = [each for each in outcomes_of(asked) if each.digest]
    assert [(each.condition, each.severity, each.main) for each in found] == [
        ("digits-c: fog", 1.0, False),
        ("digits-c: fog", 2.0, False),
    ]
    assert found[0].digest != found[1].digest
    with pytest.raises(DataError, match="--test-set"):
        outcomes_of(Examined(**{**vars(asked), "test_sets": (str(tmp_path / "nowhere"),)}))


@pytest.mark.usefixtures("narrow_resnets")
def test_a_network_that_diverged_is_scored_and_not_attacked(data_root: Path) -> None:
    asked = examined(data_root, diverged=True)
    for parameter in asked.network.parameters():
        parameter.data.fill_(torch.nan)
    found = {each.condition: each for each in outcomes_of(asked)}
    assert found["clean"].value == pytest.approx(0.1, abs=0.02)
    assert found["pgd against itself"].value == 0


FAMILIES = [name for name, kind in PERTURBATIONS.loadable().items() if not issubclass(kind, AdaptivePerturbation)]


@given(st.sampled_from(FAMILIES), st.floats(1e-3, 300))
def test_variants_are_what_a_study_file_may_say_the_weakest_first(name: str, severity: float) -> None:
    kind = PERTURBATIONS.find(name)
    whole = kind.model_fields[kind.severity].annotation is int
    try:
        member = kind.model_validate(
            {"name": name, "weight": 0.5, kind.severity: round(severity) if whole else severity}
        )
    except ValidationError:
        return
    found = member.variants()
    assert member in found
    strengths = [each.scored_severity for each in found]
    assert strengths == sorted(set(strengths))
    for each in found:
        assert kind.model_validate(each.model_dump()) == each
