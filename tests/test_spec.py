"""Study files: what is accepted, what is refused and in which words."""

import json
import string
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from support.studies import STUDIES, make_spec

from hpo.doors.parameters import Choices, Range
from hpo.errors import SpecError, nearest
from hpo.study_file.reading import load_spec, read_spec

GOOD = tomli_w.dumps(make_spec().model_dump(exclude_none=True))


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message that a study file is refused with; always one line that names the file."""
    file = tmp_path / "study.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budgte=3", "budgte: unknown key; allowed here: name, budget,"),
        ("training.epoch=3", "training.epoch: unknown key; allowed here: epochs,"),
        (
            "search.learning_rate={low = 0.1, hihg = 1}",
            "search.learning_rate.hihg: unknown key; allowed here: low, high,",
        ),
        (
            "objective.perturbations.0.sgma=1",
            "unknown key; allowed here: weight, name, level, sigma. Did you mean 'sigma'?",
        ),
        ("budget='many'", "budget: must be a valid integer, not 'many'"),
        ("budget=-5", "budget: must be greater than or equal to 1, not -5"),
        ("budget=true", "budget: must be a valid integer, not True"),
        ("training.compile=yes", "training.compile: must be true or false, not 'yes'"),
        ("training.horizontal_flip=1", "training.horizontal_flip: must be true or false, not 1"),
        ("search.learning_rate={low = 0.1, high = 1, log = True}", "search.learning_rate"),
        ('search.learning_rate={low = 0.1, high = 1, log = "yes"}', "log: must be true or false, not 'yes'"),
        ("search.learning_rate={low = 1, high = 0.1}", "search.learning_rate: low = 1 is above high = 0.1"),
        ("search.learning_rate={low = 0, high = 0.1, log = true}", "log = true needs low above 0"),
        ("search.batch_size=1.5", "search.batch_size: 1.5 is not a whole number from 2 to 65536"),
        ("search.batch_size=1", "search.batch_size: 1 is not a whole number from 2 to 65536"),
        ("search.batch_size={choices = [1, 8]}", "1 is not a whole number from 2 to 65536"),
        ("search.batch_size={choices = [8, 8]}", "names a value twice"),
        ("search.frozen_layers={low = 0, high = 12}", "search.frozen_layers: 12 is more than the 9 of resnet18"),
        ("search.initial_weights=imagenet", "must be 'pretrained', 'baseline', or"),
        ("objective.clean=0.4", "the weights must sum to 1, but clean and perturbations give 0.4 + 0.25 + 0.25 = 0.9"),
        (
            "objective.perturbations.pixel-recolor.name=gaussian-noise",
            "objective.perturbations.gaussian-noise.fraction: unknown key",
        ),
        ("objective.perturbations=[]", "objective.perturbations: must not be empty"),
        (
            "sampler.name=tpee",
            "sampler.name: must be 'auto', 'tpe', 'gp', 'random' or 'grid', not 'tpee'. Did you mean 'tpe'?",
        ),
        ("sampler.name=grid", "sampler: the grid needs choices, but search.learning_rate is a range"),
        ("warm_strat=other", "warm_strat: unknown key; allowed here: name, budget, seed, max_failed_share, warm_start"),
        ("warm_start=", "warm_start: must have at least 1 character"),
        ("warm_start=study", "warm_start: a study cannot start from itself"),
        ("pruner.name=hyperbnd", "Did you mean 'hyperband'?"),
        ("search={}", "search: nothing to search; give a range or choices to one of batch_size, learning_rate,"),
        ("data.name=mnist", "data.name: must be 'tiny-imagenet', 'image-folder' or 'digits', not 'mnist'"),
        ("data.name=image-folder", "needs archive"),
        ("data=3", "data: must be a table, not 3"),
        ("name=a/b", "name: must not begin with"),
        ("budget", "--set budget: must be key=value"),
        ("budget=" + "9" * 5000, "budget: must be a valid integer, not '999"),
        ("budget=1\nseed=5", "budget: must be a valid integer, not '1\\nseed=5'"),
        ("seed=4294967296", "seed: must be less than 4294967296"),
        ("training.epochs=1000000000000", "training.epochs: must be less than or equal to 100000"),
        ("search.learning_rate={low = nan, high = 1}", "search.learning_rate.low: must be a finite number, not nan"),
        (
            "search.learning_rate={choices = [true, 0.1]}",
            "search.learning_rate.choices.0: must be a finite number, not True",
        ),
        ("model.weights=", "model.weights: must be a path, not ''"),
        ("data.root=~nosuchuser/x", "data.root: '~nosuchuser/x' names the home of a user who does not exist"),
        ('data.root="a\\u0000b"', "data.root: must be a path"),
        ('name="a\\u2028b"', "name: must not begin with"),
        ("budget.of.what=3", "--set budget.of.what=3: budget is a value, not a table"),
        ("objective.perturbations.7.sigma=1", "'7' is not among gaussian-noise, pixel-recolor."),
        ("objective.perturbations.gausian-noise.sigma=1", "pixel-recolor. Did you mean 'gaussian-noise'?"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refused(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    ("word", "allowed", "meant"),
    [
        ("gaussian-nose", ["gaussian-noise", "pixel-recolor"], "gaussian-noise"),
        ("gaussian-blur", ["gaussian-noise", "pixel-recolor"], None),
        ("pixel-noise", ["gaussian-noise", "pixel-recolor"], None),
        ("mean", ["asha", "hyperband", "median", "none"], None),
        ("imagenet", ["tiny-imagenet", "image-folder", "digits"], None),
        ("hihg", ["low", "high", "log", "default"], "high"),
        ("hgih", ["low", "high", "log", "default"], "high"),
        ("epohcs", ["epochs", "weight_decay"], "epochs"),
        ("batch_sz", ["batch_size", "score"], "batch_size"),
        ("learning-rate", ["learning_rate"], "learning_rate"),
        ("tpee", ["auto", "tpe", "gp"], "tpe"),
        ("", ["a"], None),
    ],
)
def test_only_a_near_miss_is_suggested(word: str, allowed: list[str], meant: str | None) -> None:
    assert nearest(word, allowed) == (f" Did you mean '{meant}'?" if meant else "")


def test_another_perturbation_is_not_suggested_for_one_that_does_not_exist(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD, "objective.perturbations.gaussian-noise.name=gaussian-glass")
    assert "no perturbation 'gaussian-glass'; installed here are: adversarial-noise, adversarial-pixels" in message
    assert "Did you mean" not in message


def test_a_perturbation_given_twice_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("pixel-recolor", "gaussian-noise").replace("fraction = 0.2", "sigma = 0.2")
    assert "perturbation 'gaussian-noise' is listed twice" in refused(tmp_path, text)


def test_files_that_are_no_study_files(tmp_path: Path) -> None:
    assert "not valid TOML" in refused(tmp_path, "a = " + "[" * 3000)
    assert "not valid TOML" in refused(tmp_path, "budget = " + "9" * 5000)
    assert "not valid TOML" in refused(tmp_path, "name = [")
    assert "name: required, but not given (and" in refused(tmp_path, "")
    with pytest.raises(SpecError, match="no such study file"):
        load_spec(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not a text file in UTF-8"):
        load_spec(tmp_path / "binary.toml")


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.name)
def test_every_study_file_of_the_project_loads(file: Path) -> None:
    assert load_spec(file).search.searched


def test_overrides_reach_every_kind_of_key(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(GOOD, encoding="utf-8")
    overrides = [
        "training.epochs=7",
        "data.archive=a b.zip",
        "data.name=tiny-imagenet",
        "search.learning_rate.high=0.5",
    ]
    overrides += ["objective.perturbations.pixel-recolor.fraction=0.4", "search.batch_size=32", "name=other"]
    spec = load_spec(tmp_path / "study.toml", overrides)
    assert (spec.training.epochs, spec.name, spec.search.batch_size) == (7, "other", 32)
    assert spec.data.archive == str(Path.cwd() / "a b.zip")
    assert isinstance(spec.search.learning_rate, Range)
    assert spec.search.learning_rate.high == 0.5
    assert spec.objective.perturbations[1].scored_severity == 0.4


def test_the_baseline_is_plain_fine_tuning_as_near_as_the_file_allows() -> None:
    search = {"batch_size": {"choices": [16, 32]}, "learning_rate": {"low": 0.05, "high": 0.1}}
    assert make_spec(search=search).search.baseline() == {
        "batch_size": 32,
        "learning_rate": 0.05,
        "frozen_layers": 0,
        "augmentation_strength": 0.0,
        "initial_weights": "pretrained",
    }
    search = {"frozen_layers": {"low": 0, "high": 9, "default": 3}, "augmentation_strength": 0.5}
    baseline = make_spec(search=search).search.baseline()
    assert (baseline["frozen_layers"], baseline["augmentation_strength"]) == (3, 0.0)


def test_a_single_choice_is_a_fixed_value() -> None:
    search = {
        "initial_weights": {"choices": ["pretrained"]},
        "batch_size": {"choices": [32]},
        "frozen_layers": {"low": 0, "high": 1},
    }
    spec = make_spec(search=search)
    assert (spec.search.initial_weights, spec.search.batch_size) == ("pretrained", 32)
    assert spec.search.searched == ["frozen_layers"]


numbers = st.floats(1e-6, 1.0)
parameters = st.one_of(
    numbers,
    st.tuples(numbers, numbers, st.booleans()).map(lambda t: Range(low=min(t[:2]), high=max(t[:2]), log=t[2])),
    st.lists(numbers, min_size=1, max_size=5, unique=True).map(lambda values: Choices(choices=values)),
)
names = st.text(string.ascii_letters + "äß中 ._", min_size=1, max_size=30).filter(lambda name: not name[0].isspace())


@given(name=names, budget=st.integers(1, 10_000), learning_rate=parameters, weight=st.floats(0.01, 0.99))
def test_a_spec_survives_the_database(name: str, budget: int, learning_rate: object, weight: float) -> None:
    perturbations = [{"name": "gaussian-noise", "sigma": 0.1, "weight": weight}]
    spec = make_spec(
        name=name,
        budget=budget,
        search={"learning_rate": learning_rate, "batch_size": {"choices": [8, 16]}},
        objective={"clean": 1 - weight, "perturbations": perturbations},
    )
    assert read_spec(json.loads(spec.model_dump_json())) == spec
    assert read_spec(json.loads(json.dumps(spec.model_dump()))) == spec
