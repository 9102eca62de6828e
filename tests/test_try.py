"""`hpo try`: a configuration of one's own, within the budget, before those of the sampler."""

import contextlib
import json
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import Hpo
from support.search import open_fresh, run
from support.studies import make_spec

from hpo.errors import StudyError
from hpo.search.plan import Plan
from hpo.search.sql.asked_for import try_params
from hpo.search.sql.counts import count
from hpo.search.sql.queries import all_trials
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.worker import work

MINE = {"batch_size": 32, "learning_rate": 0.5, "frozen_layers": 2}


def ask(engine: sa.Engine, study: Study, **params: Any) -> int:
    return try_params(engine, study, params, Plan(study.spec, study.first).start_of)


def finish(engine: sa.Engine) -> None:
    work(engine, [], lambda spec, store: FreeObjective(spec), "worker", lambda text: None)


def test_it_is_the_next_trial_and_the_sampler_chooses_the_rest(engine: sa.Engine) -> None:
    run(engine, make_spec(budget=3))
    (study,) = find_studies(engine)
    extend(engine, study, 5)
    number = ask(engine, study, **MINE)  # a learning rate outside of what is searched
    finish(engine)
    trials = all_trials(engine, "study")
    assert number == 3
    assert trials[3].params | MINE == trials[3].params
    assert "augmentation_strength" in trials[3].params
    assert count(engine, study.study_id).finished == 5


def test_before_anything_started_the_baseline_stays_the_first(sqlite_engine: sa.Engine) -> None:
    study, _ = submit(sqlite_engine, make_spec(budget=4))
    assert ask(sqlite_engine, study, **MINE) == 1
    finish(sqlite_engine)
    trials = all_trials(sqlite_engine, "study")
    assert [trial.baseline for trial in trials] == [True, False, False, False]
    assert trials[1].params["learning_rate"] == 0.5
    defaults = study.spec.search.defaults()
    assert defaults in [trial.params for trial in trials], "what is known to be good is tried too"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([0.001, 0.01, 0.1]), max_size=8), st.integers(1, 6))
def test_the_budget_is_never_exceeded(
    tmp_path_factory: pytest.TempPathFactory, rates: list[float], budget: int
) -> None:
    engine = open_fresh(f"sqlite:///{tmp_path_factory.mktemp('try')}/hpo.db")
    study, _ = submit(engine, make_spec(budget=budget))
    for rate in rates:
        has_room = count(engine, study.study_id).budgeted < max(budget, 2) and budget > 1
        with contextlib.nullcontext() if has_room else pytest.raises(StudyError, match="hpo extend study --budget"):
            ask(engine, study, learning_rate=rate)
    finish(engine)
    trials = all_trials(engine, "study")
    assert len(trials) == count(engine, study.study_id).finished == budget
    assert [trial.baseline for trial in trials] == [True, *[False] * (budget - 1)]
    engine.dispose()


def test_what_cannot_be_tried_is_said_in_a_line(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    run(sqlite_engine, make_spec(budget=4))
    (best,) = json.loads(hpo_here("top", "study", "-n", "1", "--json").stdout)
    same = [f"{name}={value}" for name, value in best["params"].items()]
    for arguments, said in {
        ("study", "learning_rate=0.1"): "its budget of 4 is used up or given out; first: hpo extend study --budget 5",
        ("study", "learning_rat=0.1"): "no parameter 'learning_rat'; there are: batch_size",
        ("study", "learning_rate=fast"): "learning_rate: fast is not a number from",
        ("study", "learning_rate"): "learning_rate: must be NAME=VALUE",
        ("studi", "learning_rate=1"): "Did you mean 'study'?",
    }.items():
        refused = hpo_here("try", *arguments)
        assert refused.returncode in (1, 2)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert hpo_here("extend", "study", "--budget", "5").returncode == 0
    assert f"trial {best['number']} has these parameters" in hpo_here("try", "study", *same).stderr
    said = hpo_here("try", "study", "learning_rate=0.02").stderr
    assert "study study: trial 4 waits for a worker; the sampler chooses batch_size, frozen_layers" in said
