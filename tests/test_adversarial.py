"""Perturbations that are chosen by gradient, in a study: who makes them, and how they are scored and trained on."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.commands import Hpo
from support.studies import make_spec, write_study

from hpo.artifacts import Artifacts
from hpo.doors.objective import Context, Measurement, Trial
from hpo.errors import WeightsError
from hpo.objectives.robust_accuracy import RobustAccuracy
from hpo.search.checkpoints import StudyFolder
from hpo.vision.training.checkpoints import checkpoint_from_bytes

DATA = {"name": "digits", "images_per_class": 8, "validation_fraction": 0.05}
NOISE = {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.25}
PIXELS = {"name": "adversarial-pixels", "fraction": 0.02, "steps": 4, "restarts": 1}
SELF = {"name": "pgd", "against": "self", "images": 20, "steps": 2}
PARAMS = {"batch_size": 16, "learning_rate": 0.05, "frozen_layers": 1, "initial_weights": "pretrained"}


def objective_of(folder: Path, *perturbations: dict[str, Any], clean: float = 0.25, **changes: Any) -> RobustAccuracy:
    spec = make_spec(data=DATA, objective={"clean": clean, "perturbations": list(perturbations)}, **changes)
    said = SAID.setdefault(str(folder), [])
    store = StudyFolder(Artifacts(str(folder)), spec.folder_name)
    return RobustAccuracy(spec.objective, Context(spec.seed, 1, spec, store, said.append))


SAID: dict[str, list[str]] = {}


def trial(number: int, strength: float = 0.0, **changes: Any) -> Trial:
    params = PARAMS | {"augmentation_strength": strength}
    return Trial(number, params, seed=0, steps=2, baseline=number == 0, **changes)  # type: ignore[arg-type]


@pytest.fixture
def small(narrow_resnets: None, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))


@pytest.mark.usefixtures("small")
def test_the_baseline_makes_what_all_others_are_scored_on(tmp_path: Path) -> None:
    families = NOISE, PIXELS | {"weight": 0.25}, SELF | {"weight": 0.25}
    first = objective_of(tmp_path, *families)
    early, last = first.run(trial(0))
    assert list(early.parts) == ["clean", "gaussian-noise"], "nothing is there yet to be attacked"
    assert list(last.parts) == ["clean", "gaussian-noise", "adversarial-pixels", "pgd"]
    assert early.score == pytest.approx((early.parts["clean"] + early.parts["gaussian-noise"]) / 2)
    assert last.score == pytest.approx(sum(last.parts.values()) / 4)
    assert last.attributes["images_of"] == {"pgd": 20}
    made = checkpoint_from_bytes(first.store.read("adversarial-pixels-tuning.safetensors") or b"")
    assert made is not None
    identity, by = json.loads(made.header["identity"]), json.loads(made.header["made_by"])
    assert identity["perturbation"]["fraction"] == 0.02
    assert {"torch", "commit", "host", "device"} <= by.keys()

    another = objective_of(tmp_path, *families)
    before = SAID[str(tmp_path)].copy()
    early, last = another.run(trial(1, strength=1.0))
    said = SAID[str(tmp_path)][len(before) :]
    assert said == ["pgd: 20 images are made against the trial's own network"], "nothing else was made again"
    assert list(early.parts) == ["clean", "gaussian-noise", "adversarial-pixels"]
    assert list(last.parts) == ["clean", "gaussian-noise", "adversarial-pixels", "pgd"]
    assert last.attributes["images"] == len(another.images.tuning)
    assert last.keep().keys() >= {"training-curve.png", "predictions.png"}
    *_, third = objective_of(tmp_path, *families).run(trial(2))
    seen = [trial.attributes["made_by"]["images of adversarial-pixels"] for trial in (last, third)]
    assert seen[0] == seen[1], "each trial says what it was scored on"


@pytest.mark.usefixtures("small")
def test_a_lost_or_foreign_set_is_made_again(tmp_path: Path) -> None:
    family = PIXELS | {"weight": 0.75}
    list(objective_of(tmp_path, family).run(trial(0)))
    name = "adversarial-pixels-tuning.safetensors"
    file = tmp_path / "study" / name
    original = checkpoint_from_bytes(file.read_bytes())
    assert original is not None
    for damage in (file.unlink, partial(file.write_bytes, b"damaged")):
        damage()
        next(iter(objective_of(tmp_path, family).run(trial(1))))
        again = checkpoint_from_bytes(file.read_bytes())
        assert again is not None
        assert (again.tensors["pixels"] == original.tensors["pixels"]).float().mean() > 0.99
    next(iter(objective_of(tmp_path, family | {"fraction": 0.04}).run(trial(1))))
    other = checkpoint_from_bytes(file.read_bytes())
    assert other is not None
    assert other.header["identity"] != original.header["identity"]


@pytest.mark.usefixtures("small")
def test_without_the_baseline_it_is_said_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"baseline.safetensors .* cannot be found from this machine"):
        next(iter(objective_of(tmp_path, PIXELS | {"weight": 0.75}).run(trial(1))))


@pytest.mark.usefixtures("small")
def test_nothing_is_chosen_against_a_baseline_that_diverged(tmp_path: Path) -> None:
    objective = objective_of(tmp_path, PIXELS | {"weight": 0.75})
    diverging = replace(trial(0), params=PARAMS | {"augmentation_strength": 0.0, "learning_rate": 1e9})
    *_, last = objective.run(diverging)
    assert last.attributes["diverged"]
    with pytest.raises(WeightsError, match="the baseline's training diverged"):
        next(iter(objective.run(trial(1))))


@pytest.mark.usefixtures("small")
def test_training_images_are_perturbed_with_what_augmentation_names(tmp_path: Path) -> None:
    """Against the baseline or the network itself; a training that is resumed goes the same way."""
    augmentation = {"perturbations": [PIXELS, SELF, NOISE | {"weight": 0.5}]}
    objective = objective_of(tmp_path, NOISE | {"weight": 0.75}, augmentation=augmentation)
    list(objective.run(trial(0)))
    assert (tmp_path / "study" / "adversarial-pixels-train.safetensors").exists()
    first, last = objective.run(trial(1, strength=1.0))
    *_, plain = objective_of(tmp_path / "plain", NOISE | {"weight": 0.75}).run(trial(1, strength=1.0))
    assert weights(plain) != weights(last)
    beginning = next(iter(objective.run(trial(2, strength=1.0))))
    assert callable(beginning.checkpoint)
    (resumed,) = objective.run(trial(2, strength=1.0, checkpoint=beginning.checkpoint()()))
    assert first.parts == beginning.parts
    assert resumed.parts == last.parts
    assert weights(resumed) == weights(last)


def weights(measured: Measurement) -> bytes:
    return measured.keep()["weights.safetensors"]


def test_what_is_scored_but_not_trained_on_is_held_out() -> None:
    scored = [NOISE, PIXELS | {"weight": 0.25}, SELF | {"weight": 0.25}]
    spec = make_spec(objective={"clean": 0.25, "perturbations": scored})
    assert spec.hold_outs == ["pgd"], "what is chosen against the network itself is trained on where it is asked for"
    assert [(p.name, p.weight) for p in spec.training_perturbations] == [
        ("gaussian-noise", 1.0),
        ("adversarial-pixels", 1.0),
    ]
    unscored = make_spec(objective={"clean": 0.75, "perturbations": [NOISE, PIXELS | {"weight": 0.0}]})
    assert unscored.hold_outs == ["adversarial-pixels"], "what counts for nothing is trained on where it is asked for"
    named = make_spec(
        objective={"clean": 0.25, "perturbations": scored},
        augmentation={"perturbations": [{"name": "gaussian-noise", "sigma": 0.1}]},
    )
    assert named.hold_outs == ["adversarial-pixels", "pgd"]
    assert "adversarial-pixels-tuning.safetensors" in named.shared_files, "deleted and renamed with the study"
    assert named.waits_for_baseline
    assert not make_spec().waits_for_baseline
    assert make_spec().hold_outs == []
    assert "augmentation" not in make_spec().model_dump(mode="json"), "older studies are what they were"


def test_training_perturbations_without_a_strength_are_refused() -> None:
    search, perturbations = {"batch_size": {"choices": [16, 32]}}, [{"name": "gaussian-noise", "sigma": 0.1}]
    with pytest.raises(ValidationError, match=r"no image is perturbed without search.augmentation_strength"):
        make_spec(search=search, augmentation={"perturbations": perturbations})
    make_spec(
        search=search | {"augmentation_strength": 0.0}, augmentation={"perturbations": perturbations}
    )  # a control


@pytest.mark.usefixtures("narrow_resnets")
def test_a_study_is_run_and_read(hpo_here: Hpo, tmp_path: Path) -> None:
    scored = [NOISE, PIXELS | {"weight": 0.25}, SELF | {"weight": 0.0}]
    study = write_study(
        tmp_path,
        budget=3,
        model={"weights": "none", "input_size": 16},
        objective={"clean": 0.5, "perturbations": scored},
        augmentation={"perturbations": [{"name": "gaussian-noise", "sigma": 0.1}]},
    )
    hpo_here("submit", study)
    ran = hpo_here("worker", "study")
    assert ran.returncode == 0, ran.stderr
    shown = hpo_here("top", "study").stdout
    assert "Held out, which means measured but never trained on: adversarial-pixels, pgd." in shown
    assert "pgd on 20 of them" in " ".join(shown.split())
    best = json.loads(hpo_here("best", "study", "--json").stdout)
    assert set(best["perturbed_accuracy"]) == {"gaussian-noise", "adversarial-pixels", "pgd"}
    assert best["images_of"]["pgd"] == 20 < best["images"]
    assert best["correct"]["pgd"] == round(best["parts"]["pgd"] * 20)
    found = hpo_here("top", "study", "--where", "adversarial_pixels >= 0 and pgd >= 0", "--json")
    assert len(json.loads(found.stdout)) == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("augmentation.perturbations=[{name = 'gaussian-nose'}]", "no perturbation 'gaussian-nose'"),
        (
            "augmentation.perturbations=[{name = 'gaussian-noise'}]",
            "perturbations.gaussian-noise: give sigma, or level",
        ),
        (
            "augmentation.perturbations=[{name = 'fog', strenght = 1}]",
            "fog.strenght: unknown key; allowed here: weight",
        ),
        ("augmentation.perturbations=[{name = 'fgsm', level = 1}]", "fgsm: fgsm has no levels; give epsilon"),
        ("augmentation.perturbations=[{name = 'pixel-recolor'}]", "pixel-recolor.fraction: required, but not given"),
        (
            "augmentation.perturbations=[{name = 'fog', level = 6}]",
            "perturbations.fog.level: must be less than or equal to 5",
        ),
        ("augmentation.perturbations=[{name = 'pgd', weight = 0}]", "'pgd': its weight must be above 0"),
        ("augmentation.perturbations=[{name = 'pgd'}, {name = 'pgd'}]", "'pgd' is listed twice"),
        ("augmentation.perturbations=[]", "augmentation.perturbations: must not be empty"),
        ("augmentation.perturbation=[]", "augmentation.perturbation: unknown key; allowed here: perturbations."),
        ("objective.perturbations=[{name = 'pgd', weight = 0.5, against = 'it'}]", "against: must be 'baseline' or"),
        (
            "objective.perturbations=[{name = 'pgd', weight = 0.5, epsilon = 2.0}]",
            "epsilon: must be less than or equal",
        ),
        ("objective.perturbations=[{name = 'pgd', weight = 0.5, against = 'self'}]", "list what training images are"),
        ("objective.perturbations=[{name = 'pgd', weight = 0.5, restart = 2}]", "Did you mean 'restarts'?"),
    ],
)
def test_bad_input_is_one_line(hpo_here: Hpo, tmp_path: Path, override: str, expected: str) -> None:
    refused = hpo_here("submit", write_study(tmp_path), "--set", override)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert expected in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "hpo.db").exists()
