"""The table of parameters: each row is accepted, bounded, drawn, recorded and does what it says."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Hpo
from support.perturbations import perturbations
from support.studies import make_spec, write_study
from test_step import FP32, a_batch, results, start
from torch.nn import functional as F

from hpo.doors.objective import Trial
from hpo.errors import SpecError
from hpo.search.samplers import distributions, given_params
from hpo.study_file.overrides import apply_override
from hpo.study_file.parameters import PARAMETERS
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec
from hpo.vision.classifier import Classifier, build_network, fingerprint
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.loop import Training
from hpo.vision.training.optimizers import AdamW
from hpo.vision.training.recipe import Recipe

if TYPE_CHECKING:
    from hpo.objectives.robust_accuracy import RobustAccuracy

pytestmark = pytest.mark.usefixtures("narrow_resnets")
numeric = [row.name for row in PARAMETERS.values() if row.kind != "word"]
OLD = ["batch_size", "learning_rate", "frozen_layers", "augmentation_strength", "initial_weights"]


@given(st.sampled_from(numeric), st.data())
@settings(max_examples=60, deadline=None)
def test_every_value_within_the_bounds_is_taken_and_none_beyond(name: str, data: st.DataObject) -> None:
    row = PARAMETERS[name]
    values = st.integers if row.kind == "whole" else st.floats
    inside = data.draw(values(row.low, min(row.high, 9 if name == "frozen_layers" else row.high)))  # type: ignore[operator]
    spec = make_spec(budget=2, search={"augmentation_strength": 1.0, name: inside})
    assert dict(spec.search.parameters())[name] == inside
    assert given_params(spec, {})[name] == inside
    beyond = row.high + 1 if data.draw(st.booleans()) else row.low - 1
    with pytest.raises(ValueError, match="is not a"):
        make_spec(budget=2, search={"augmentation_strength": 1.0, name: beyond})


@given(st.sampled_from(sorted(PARAMETERS)))
def test_every_parameter_is_drawn_from_what_the_file_says(name: str) -> None:
    row = PARAMETERS[name]
    if row.kind == "word":
        spec = make_spec(search={"augmentation_strength": 1.0, name: {"choices": list(row.words)}})
        assert distributions(spec, given_params(spec, {}))[name].choices == row.words  # type: ignore[attr-defined]
    else:
        low, high = (2, 4) if row.kind == "whole" else (0.2, 0.5)
        spec = make_spec(search={"augmentation_strength": 1.0, name: {"low": low, "high": high}})
        drawn = distributions(spec, given_params(spec, {}))[name]
        assert (drawn.low, drawn.high) == (low, high)  # type: ignore[attr-defined]
    assert name in spec.search.searched
    assert name in spec.search.defaults()


def test_a_study_that_names_no_newer_parameter_is_what_it_was() -> None:
    spec = make_spec()
    assert list(spec.search.baseline()) == OLD
    assert list(spec.model_dump(mode="json")["search"]) == OLD
    assert list(distributions(spec, given_params(spec, {}))) == OLD


def test_choices_with_a_zero_are_not_searched_on_a_logarithmic_scale() -> None:
    spec = make_spec(search={"weight_decay": {"choices": [0.0, 1e-4, 1e-2]}})
    assert not distributions(spec, given_params(spec, {}))["weight_decay"].log  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.optimizer=adam", "search.optimizer: must be 'sgd', 'adamw', or { choices = ['sgd', 'adamw'] }"),
        (
            "search.frozen_side=top",
            "search.frozen_side: must be 'input', 'output', or { choices = ['input', 'output'] }",
        ),
        ("search.weight_decay=-1", "search.weight_decay: -1 is not a number from 0 to 1"),
        ("search.perturbed_shares=0.5", "unknown key; allowed here: batch_size, .* Did you mean 'perturbed_share'"),
        ("search.augmentation_strength=0", "search.perturbed_share: no image is perturbed while"),
        ("search.label_smoothing={ low = 0.0, high = 1.0 }", "1.0 is not a number from 0 to 0.99"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, override: str, words: str) -> None:
    import re

    with pytest.raises(SpecError, match=words if ".*" in words else re.escape(words)):
        load_spec(Path(write_study(tmp_path)), ["search.perturbed_share={ low = 0.25, high = 1.0 }", override])


def objective_of(spec: Spec) -> "RobustAccuracy":
    from hpo.objectives.robust_accuracy import RobustAccuracy

    class Only(RobustAccuracy):
        def __init__(self, spec: Spec) -> None:
            self.spec = spec
            self.settings = spec.objective
            self.pretrained = {}
            self.images = SimpleNamespace(classes=("cat", "dog"))  # type: ignore[assignment]

    return Only(spec)


def recipe_of(**params: object) -> Recipe:
    spec = make_spec(search={"batch_size": {"choices": [16, 32]}, "augmentation_strength": 1.0} | params)
    return objective_of(spec).recipe(Trial(1, spec.search.defaults(), seed=0, steps=spec.steps))


def test_a_trial_is_trained_with_what_it_tries() -> None:
    plain = recipe_of()
    assert (plain.weight_decay, plain.label_smoothing, plain.optimizer) == (5e-4, 0.1, "sgd")
    augmentation = plain.augmentation
    assert (augmentation.perturbed_share, augmentation.perturbed_area, augmentation.severity_draw) == (
        0.5,
        1,
        "uniform",
    )
    tried = recipe_of(weight_decay=0.01, label_smoothing=0.0, optimizer="adamw")
    assert (tried.weight_decay, tried.label_smoothing, tried.optimizer) == (0.01, 0.0, "adamw")
    augmentation = recipe_of(perturbed_share=0.9, perturbed_area=0.2, severity_draw="beta").augmentation
    assert (augmentation.perturbed_share, augmentation.perturbed_area, augmentation.severity_draw) == (0.9, 0.2, "beta")
    assert (plain.consistency, recipe_of(consistency=6).consistency) == (0, 6)
    split = recipe_of(batch_norm="split", perturbed_share=0.3)
    assert (split.splits_statistics, split.augmentation.perturbed_share) == (True, 0.6), "twins are unperturbed"
    assert not plain.splits_statistics
    for without in ({"augmentation_strength": 0.0}, {"perturbed_share": 0.0}):
        alone = recipe_of(consistency=6, batch_norm="split", **without)
        assert not alone.has_twins, "of images that are not perturbed"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_that_share_of_the_images_is_perturbed(share: float) -> None:
    pixels = torch.randint(0, 256, (2000, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(2000)
    augment = Augmentation(1.0, perturbations(sigma=0.1, fraction=0.5), False, share)
    plain = replace(augment, strength=0.0)(pixels, keys, seed=0, epoch=1)
    changed = (augment(pixels, keys, seed=0, epoch=1) != plain).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(share, abs=0.04)


def test_adamw_is_pytorchs_to_the_last_bit() -> None:
    def network() -> torch.nn.Module:
        return build_network("resnet18", 5, {}, 32, 0, seed=0).trainable_part.train()

    ours, theirs = network(), network()
    optimizer = AdamW(ours.parameters(), 0.05)
    groups = [{"params": [p for p in theirs.parameters() if (p.ndim > 1) == decayed]} for decayed in (True, False)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.05, 0.0  # type: ignore[assignment]
    reference = torch.optim.AdamW(groups, lr=1.0, fused=True)
    for number, rate in enumerate((1e-3, 3e-3, 1e-4)):
        features, labels = a_batch(number)
        for part in (ours, theirs):
            F.cross_entropy(part(features), labels).backward()
        optimizer.rate.fill_(rate)
        for group in reference.param_groups:
            group["lr"] = torch.tensor(rate)
        optimizer.step()
        optimizer.forget_gradients()
        reference.step()
        reference.zero_grad()
    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())


def test_a_training_with_adamw_that_goes_on_gives_what_the_unbroken_one_gives() -> None:
    def fresh() -> Training:
        plain = start(epochs=3)
        return Training(plain.network, replace(plain.recipe, optimizer="adamw", learning_rate=1e-3), FP32)

    unbroken = fresh()
    expected = results(unbroken)
    from test_step import said, training_images, tuning_images

    from hpo.vision.training.loop import fine_tune

    broken = fresh()
    first = said(next(iter(fine_tune(broken, training_images(), tuning_images()))))
    resumed = fresh()
    resumed.restore({name: tensor.clone() for name, tensor in broken.tensors().items()})
    assert [first, *results(resumed)] == expected
    assert fingerprint(resumed.tensors()) == fingerprint(unbroken.tensors())


@pytest.mark.parametrize(("side", "frozen"), [({}, {0, 1}), ({"frozen_side": "output"}, {7, 8})])
def test_a_trial_freezes_the_side_that_it_tries(side: dict[str, str], frozen: set[int]) -> None:
    spec = make_spec(budget=2, search={"augmentation_strength": 1.0, "frozen_layers": 2} | side)
    network = objective_of(spec).network(spec.search.defaults(), {})
    units = network.family.units(network.module)
    learns = [all(parameter.requires_grad for parameter in unit.parameters()) for unit in units]
    assert {number for number, each in enumerate(learns) if not each} == frozen


def units_of(network: Classifier) -> list[str]:
    """What each unit holds, its BatchNorm's statistics included, and the head last."""
    units = [*network.family.units(network.module), network.head]
    return [fingerprint(unit.state_dict()) for unit in units]


def trained(frozen: int, averages: bool = True, **side: str) -> Training:
    plain = start(epochs=1)
    network = build_network("resnet18", 5, {}, 32, frozen, 0, **side)
    return Training(network, replace(plain.recipe, averages=averages), FP32)


@pytest.mark.parametrize("averages", [True, False], ids=["averaged", "last"])
@pytest.mark.parametrize("frozen", [2, 9])
def test_units_frozen_at_the_output_keep_their_weights_and_the_others_learn(frozen: int, averages: bool) -> None:
    training = trained(frozen, averages, frozen_side="output")
    before = units_of(training.network)
    frozen_parameters = {p for unit in training.network.frozen_units for p in unit.parameters()}
    assert len(training.network.frozen_units) == frozen
    assert not any(frozen_parameters & kept.keys() for kept in training.optimizer.state.values())
    results(training)
    for network in (training.network, training.averaged):
        changed = [old != new for old, new in zip(before, units_of(network), strict=True)]
        assert changed == [True] * (9 - frozen) + [False] * frozen + [True]


def test_a_training_with_units_frozen_at_the_output_goes_on_from_a_checkpoint() -> None:
    from test_step import said, training_images, tuning_images

    from hpo.vision.training.loop import fine_tune

    def fresh() -> Training:
        plain = start(epochs=2)
        return Training(build_network("resnet18", 5, {}, 32, 3, 0, "output"), plain.recipe, FP32)

    unbroken, broken, resumed = fresh(), fresh(), fresh()
    expected = results(unbroken)
    first = said(next(iter(fine_tune(broken, training_images(), tuning_images()))))
    resumed.restore({name: tensor.clone() for name, tensor in broken.tensors().items()})
    assert [first, *results(resumed)] == expected
    assert fingerprint(resumed.tensors()) == fingerprint(unbroken.tensors())


def test_frozen_side_left_out_is_the_input() -> None:
    left_out, said_so = trained(3), trained(3, frozen_side="input")
    before = units_of(left_out.network)
    assert results(left_out) == results(said_so)
    assert fingerprint(left_out.tensors()) == fingerprint(said_so.tensors())
    changed = [old != new for old, new in zip(before, units_of(left_out.network), strict=True)]
    assert changed == [False] * 3 + [True] * 7


def test_they_are_searched_recorded_and_asked_for(hpo_here: Hpo, tmp_path: Path) -> None:
    search = {
        "batch_size": 16,
        "learning_rate": 0.01,
        "frozen_layers": 8,
        "augmentation_strength": 0.5,
        "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
        "optimizer": {"choices": ["sgd", "adamw"]},
        "frozen_side": {"choices": ["input", "output"]},
    }
    training = {"epochs": 1, "horizontal_flip": False}
    assert hpo_here("submit", write_study(tmp_path, budget=4, search=search, training=training)).returncode == 0
    worked = hpo_here("worker", "study")
    assert worked.returncode == 0, worked.stderr
    chosen = json.loads(hpo_here("top", "study", "--json", "-n", "9", "--sort", "weight_decay:asc").stdout)
    decays = [trial["params"]["weight_decay"] for trial in chosen]
    assert decays == sorted(decays)
    assert len(set(decays)) > 1
    for name in ("optimizer", "frozen_side"):
        for word in {trial["params"][name] for trial in chosen}:
            found = json.loads(hpo_here("top", "study", "--json", "-n", "9", "--where", f"{name} = '{word}'").stdout)
            assert {trial["params"][name] for trial in found} == {word}
    assert "weight_decay" in hpo_here("top", "study", "--csv").stdout.splitlines()[0]
    document = hpo_here("best", "study", "--toml").stdout
    assert "weight_decay" in document.split("[search]")[1]


def test_an_override_reaches_them() -> None:
    document: dict[str, object] = {"search": {}}
    apply_override(document, "search.optimizer.choices=['sgd', 'adamw']")
    assert document == {"search": {"optimizer": {"choices": ["sgd", "adamw"]}}}
