"""`hpo extend --set`: a running study searches elsewhere, and its old trials stay what they were."""

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import run
from support.studies import make_spec

from hpo.errors import StudyError
from hpo.search.sql.counts import count
from hpo.search.sql.queries import all_trials
from hpo.search.sql.respecifying import respecify
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend
from hpo.search.worker import work


def finished(engine: sa.Engine, sampler: str = "auto") -> Study:
    run(engine, make_spec(budget=8, sampler={"name": sampler}))
    return find_studies(engine, ["study"])[0]


def go_on(engine: sa.Engine, budget: int) -> None:
    extend(engine, find_studies(engine, ["study"])[0], budget)
    work(engine, ["study"], lambda spec, store: FreeObjective(spec), "worker", lambda text: None)


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_a_wider_range_is_searched_and_old_trials_stay(sqlite_engine: sa.Engine, sampler: str) -> None:
    study = finished(sqlite_engine, sampler)
    before = [(trial.params, trial.score) for trial in all_trials(sqlite_engine, "study")]
    changes = ["search.learning_rate.high=10.0", "search.learning_rate.low=0.9"]
    changes.append("search.learning_rate.default=1.0")
    within, known = respecify(sqlite_engine, study, changes)
    assert (within < known, known) == (True, 8)
    go_on(sqlite_engine, 14)
    trials = all_trials(sqlite_engine, "study")
    assert [(trial.params, trial.score) for trial in trials[:8]] == before
    assert all(0.9 <= float(trial.params["learning_rate"]) <= 10 for trial in trials[8:])
    assert count(sqlite_engine, study.study_id).finished == 14


def test_rules_and_priority_are_changed_in_a_running_study(engine: sa.Engine) -> None:
    study = finished(engine)
    respecify(engine, study, ["stop.patience=1", "priority=3"])
    (changed,) = find_studies(engine, ["study"])
    assert (changed.spec.priority, changed.spec.stop.patience) == (3, 1)
    go_on(engine, 50)
    assert find_studies(engine, ["study"])[0].rule == "patience"


def test_what_would_make_other_trials_is_refused(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    study = finished(sqlite_engine)
    for override, said in {
        "training.epochs=9": "these can be changed: search, stop, priority",
        "serch.learning_rate=1": "Did you mean 'search'?",
        "search.learning_rate.low=7.0": "is above high",
        "search.weight_decay={low=1e-5, high=1e-3}": "its trials have other parameters (weight_decay)",
        "search.learning_rat=1": "Did you mean 'learning_rate'?",
        "priority=0": "priority: must be greater than or equal to 1",
    }.items():
        refused = hpo_here("extend", "study", "--set", override)
        assert refused.returncode in (1, 2), override
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert find_studies(sqlite_engine, ["study"])[0].spec == study.spec
    assert "give --budget or --set" in hpo_here("extend", "study").stderr
    said = hpo_here("extend", "study", "--set", "search.learning_rate.high=0.02", "--budget", "9").stderr
    assert "finished trials lie outside of what is searched now, so that samplers leave them out" in said
    assert "1 trial added" in said


def test_a_grid_is_not_changed(sqlite_engine: sa.Engine) -> None:
    search = {"batch_size": {"choices": [16, 32]}, "learning_rate": 0.01, "frozen_layers": 0}
    run(sqlite_engine, make_spec(budget=3, search=search, sampler={"name": "grid"}))
    (study,) = find_studies(sqlite_engine)
    with pytest.raises(StudyError, match="goes through a grid"):
        respecify(sqlite_engine, study, ["search.batch_size.choices=[16, 64]"])
