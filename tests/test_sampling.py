"""What trials try: samplers, grids and choices, never the same twice; and what samplers are shown."""

import collections
import json
import threading
from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from support.search import claim_next, give_parameter, open_fresh, optuna_storage, run, states
from support.studies import make_spec

from hpo.doors.objective import Trial
from hpo.doors.parameters import Params
from hpo.errors import DataError
from hpo.search import samplers
from hpo.search.ordered_choices import to_choice
from hpo.search.sql import claims
from hpo.search.sql.submitting import submit
from hpo.search.sql.trials_in_memory import History, with_estimates
from hpo.search.worker import work


@pytest.fixture
def engine(sqlite_engine: sa.Engine) -> sa.Engine:
    """What is drawn does not depend on the kind of database."""
    return sqlite_engine


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("auto", "asha"), ("tpe", "asha"), ("tpe", "hyperband"), ("gp", "median"), ("gp", "asha"), ("random", "none")],
)
def test_every_sampler_and_pruner_finishes_the_budget(tmp_path: Path, sampler: str, pruner: str) -> None:
    engine = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    study = run(engine, make_spec(budget=7, sampler={"name": sampler}, pruner={"name": pruner}))
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    assert len(study.trials) == 7
    assert {trial.params["batch_size"] for trial in study.trials} <= {16, 32, 64}
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 6, (
        "two begin with what is known to be good"
    )


def test_the_grid_covers_every_point_once(engine: sa.Engine) -> None:
    search = {"batch_size": {"choices": [16, 32]}, "learning_rate": {"choices": [0.01, 0.1]}, "frozen_layers": 3}
    study = run(engine, make_spec(budget=5, search=search, sampler={"name": "grid"}))
    points = [(trial.params["batch_size"], trial.params["learning_rate"]) for trial in study.trials[1:]]
    assert sorted(points) == [(16, 0.01), (16, 0.1), (32, 0.01), (32, 0.1)]
    assert {trial.params["frozen_layers"] for trial in study.trials} == {3}


def test_the_files_defaults_are_tried_right_after_the_baseline(engine: sa.Engine) -> None:
    search = {
        "augmentation_strength": {"low": 0.0, "high": 1.0, "default": 0.7},
        "learning_rate": {"low": 0.01, "high": 1},
    }
    study = run(engine, make_spec(budget=3, search=search))
    assert [trial.params["augmentation_strength"] for trial in study.trials[:2]] == [0.0, 0.7]
    assert study.trials[0].params["learning_rate"] == study.trials[1].params["learning_rate"] == 0.02


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "random"])
def test_trials_are_reproducible_and_no_two_alike(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for number in range(2):
        engine = open_fresh(f"sqlite:///{tmp_path}/{number}.db")
        study = run(engine, make_spec(sampler={"name": sampler}))
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len({tuple(params.items()) for params in drawn[0]}) == len(drawn[0])


@given(
    st.lists(st.integers(1, 2000), min_size=2, max_size=8, unique=True),
    st.booleans(),
    st.floats(0, 1),
)
def test_whatever_is_drawn_becomes_a_choice_and_a_choice_stays(choices: list[int], logarithmic: bool, u: float) -> None:
    value = min(choices) + u * (max(choices) - min(choices))
    assert to_choice(value, choices, logarithmic) in choices
    for choice in choices:
        assert to_choice(choice, choices, logarithmic) == choice


def test_evenly_spaced_choices_are_drawn_equally_often() -> None:
    low, high = log10(32), log10(512)
    draws = [10 ** (low + (high - low) * (i + 0.5) / 1000) for i in range(1000)]
    counted = collections.Counter(to_choice(draw, [32, 64, 128, 256, 512], logarithmic=True) for draw in draws)
    assert all(count == pytest.approx(200, abs=2) for count in counted.values())


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_nothing_is_tried_twice_while_there_is_something_new(tmp_path: Path, sampler: str) -> None:
    search = {"batch_size": {"choices": [16, 32, 64]}, "frozen_layers": {"low": 0, "high": 2}}
    spec = make_spec(budget=7, search=search, sampler={"name": sampler})  # of 9 that there are
    study = run(open_fresh(f"sqlite:///{tmp_path}/hpo.db"), spec)
    assert len({json.dumps(trial.params) for trial in study.trials}) == 7


def test_workers_at_once_never_draw_the_same_trial(engine: sa.Engine) -> None:
    spec = make_spec(budget=16)
    submit(engine, spec)
    workers = [
        threading.Thread(target=work, args=(engine, ["study"], FreeObjective, f"w{i}", lambda text: None))
        for i in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    assert states(study) == ["COMPLETE"] * 16
    assert len({json.dumps(trial.params) for trial in study.trials}) == 16


def test_samplers_are_shown_what_optuna_would_show_them(engine: sa.Engine) -> None:
    objective = {
        "clean": 0.5,
        "max_clean_drop": 0.01,
        "perturbations": [{"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}],
    }
    spec = make_spec(budget=12, objective=objective, pruner={"name": "asha"}, training={"epochs": 9})
    history = History(engine, 1, spec.name)
    study, _ = submit(engine, spec)
    first = claim_next(engine, study, "elsewhere")  # the baseline ends last
    assert first is not None
    threading.Timer(1.0, lambda: claims.give_back(engine, first.hold, "stopped", "later")).start()
    worker = threading.Thread(target=work, args=(engine, ["study"], FreeObjective, "w", lambda text: None))
    worker.start()
    while worker.is_alive():
        history.study().get_trials()
        worker.join(0.05)
    expected = optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials
    seen = history.study().get_trials()
    assert [trial.number for trial in seen] == [trial.number for trial in expected if trial.state.name != "FAIL"]
    for trial in seen:
        other = expected[trial.number]
        assert (trial.params, trial.distributions) == (other.params, other.distributions)
        assert (trial.values, trial.intermediate_values) == (other.values, other.intermediate_values)
        assert (trial.state, trial.constraints) == (other.state, other.constraints)
        rungs = {key: value for key, value in other.system_attrs.items() if key.startswith("completed_rung")}
        assert {key: value for key, value in trial.system_attrs.items() if key in rungs} == rungs


def test_running_trials_of_others_are_shown_as_pending(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    claim = claim_next(engine, study, "elsewhere")
    assert claim is not None
    give_parameter(engine, claim.hold)
    (pending,) = History(engine, study.study_id, "study").study().get_trials()
    assert (pending.state.name, pending.params) == ("RUNNING", {"batch_size": 16})


def ended(number: int, state: str, scores: Sequence[float], **params: float) -> FrozenTrial:
    trial = optuna.create_trial(
        state=TrialState[state],
        value=scores[-1],
        params=params,
        distributions={name: FloatDistribution(0, 1) for name in params},
        intermediate_values=dict(enumerate(scores, 1)),
    )
    trial.number = number
    return trial


def test_a_sampler_is_shown_what_a_pruned_trial_would_probably_have_had() -> None:
    study = optuna.create_study(direction="maximize")
    complete = [(0.2, 0.4, 0.5), (0.3, 0.5, 0.5), (0.3, 0.4, 0.6)]
    study.add_trials([ended(i, "COMPLETE", scores) for i, scores in enumerate(complete)])
    study.add_trials([ended(3, "PRUNED", (0.3, 0.35)), ended(4, "PRUNED", (0.1,)), ended(5, "PRUNED", (0, 0, 0, 0))])
    shown = with_estimates(study, study.trials[0]).get_trials()
    assert [trial.state.name for trial in shown] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert [trial.value for trial in shown] == pytest.approx([0.5, 0.5, 0.6, 0.35 + 0.1, 0.1 + 0.3, 0])
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["PRUNED"] * 3


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_a_constrained_study_learns_from_trials_whose_constraint_is_not_known(engine: sa.Engine, sampler: str) -> None:
    def need_memory(params: Params) -> None:
        if params["batch_size"] == 16:
            raise MemoryError("too many images")

    perturbation = {"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}
    objective = {"clean": 0.5, "max_clean_drop": 0.01, "perturbations": [perturbation]}
    pruner = {"name": "asha"}
    spec = make_spec(budget=16, objective=objective, sampler={"name": sampler}, pruner=pruner, training={"epochs": 4})
    study = run(engine, spec, need_memory)
    unknown = [trial for trial in study.trials if not trial.constraints]
    assert {"PRUNED", "COMPLETE"} == {trial.state.name for trial in unknown}
    assert len(study.trials) == 16


def test_auto_is_a_gaussian_process_and_then_tpe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "MAX_GP_TRIALS", 6)
    monkeypatch.setattr(samplers, "STARTUP_TRIALS", {"tpe": 4, "gp": 4})
    drawn = {}
    for name in ("auto", "gp", "tpe"):
        study = run(open_fresh(f"sqlite:///{tmp_path}/{name}.db"), make_spec(budget=8, sampler={"name": name}))
        drawn[name] = [trial.params for trial in study.trials]
    assert drawn["auto"][:6] == drawn["gp"][:6]
    assert drawn["auto"][4:6] != drawn["tpe"][4:6]
    assert drawn["auto"][6:] != drawn["gp"][6:]


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "random", "grid"])
@pytest.mark.parametrize("strength", [{"low": 0.5, "high": 1.0}, {"choices": [0.5, 0.75, 1.0]}])
def test_the_baseline_may_lie_outside_of_what_is_searched(
    tmp_path: Path, sampler: str, strength: dict[str, Any]
) -> None:
    engine = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    search: dict[str, Any] = {"augmentation_strength": strength, "learning_rate": {"choices": [0.01, 0.03, 0.1]}}
    if sampler == "grid" and "low" in strength:
        return
    study = run(engine, make_spec(budget=10, search=search, sampler={"name": sampler}))
    baseline, *others = study.trials
    assert baseline.params["augmentation_strength"] == 0
    assert all(0.5 <= trial.params["augmentation_strength"] <= 1 for trial in others)
    assert states(study) == ["COMPLETE"] * 10


def test_a_whole_number_for_a_fraction_is_what_a_resumed_trial_has_too(engine: sa.Engine) -> None:
    """Checkpoints are known by their parameters: 1 and 1.0 would not find each other's."""
    given: list[str] = []

    class Interrupted(FreeObjective):
        def run(self, trial: Trial) -> Any:
            given.append(json.dumps(dict(trial.params), sort_keys=True))
            if len(given) == 1:
                raise DataError("stop here")
            return super().run(trial)

    search = {"augmentation_strength": 1, "learning_rate": {"low": 0.001, "high": 1, "default": 1}}
    submit(engine, make_spec(budget=2, search=search))
    with pytest.raises(DataError):
        work(engine, ["study"], Interrupted, "worker", lambda text: None)
    work(engine, ["study"], Interrupted, "worker", lambda text: None)
    assert given[0] == given[1]
    assert json.loads(given[0])["augmentation_strength"] == 1.0
