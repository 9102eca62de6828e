"""`hpo exclude`: a trial that samplers, queries and views leave out, and that is there again when it is asked for."""

import json

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import run
from support.studies import make_spec

from hpo.errors import StudyError
from hpo.search.sql.asked_for import exclude, include
from hpo.search.sql.counts import count
from hpo.search.sql.queries import all_trials, best_trials
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend
from hpo.search.sql.trials_in_memory import History
from hpo.search.worker import work


def finished(engine: sa.Engine) -> Study:
    run(engine, make_spec(budget=6))
    return find_studies(engine, ["study"])[0]


def numbers(engine: sa.Engine) -> list[int]:
    return [trial.number for trial in all_trials(engine, "study")]


def test_it_is_left_out_of_views_and_by_samplers_and_comes_back(engine: sa.Engine) -> None:
    study = finished(engine)
    history = History(engine, study.study_id, "study")  # as a worker has it, before and after
    assert len(history.study().get_trials()) == 6
    best = best_trials(engine, "study", 1)[0].number
    assert exclude(engine, study, best, "a spoilt disk")
    assert not exclude(engine, study, best, "again")
    assert best not in numbers(engine)
    assert best_trials(engine, "study", 1)[0].number != best
    with engine.connect() as connection:
        ranked = connection.execute(sa.text("SELECT number FROM best_configs")).scalars().all()
    assert best not in ranked
    assert best not in [trial.number for trial in history.study().get_trials()]
    assert count(engine, study.study_id).finished == 6, "the budget is used all the same"
    extend(engine, study, 8)
    work(engine, ["study"], lambda spec, store: FreeObjective(spec), "worker", lambda text: None)
    assert count(engine, study.study_id).finished == 8
    assert include(engine, study, best)
    assert not include(engine, study, best)
    assert numbers(engine) == list(range(8))
    assert len(history.study().get_trials()) == 8


def test_what_cannot_be_excluded_is_said(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    study = finished(sqlite_engine)
    with pytest.raises(StudyError, match="is the baseline"):
        exclude(sqlite_engine, study, 0, "no")
    for arguments, said in {
        ("study", "99", "--why", "x"): "has no trial 99",
        ("study", "1"): "give either --why or --undo",
        ("study", "1", "--why", "x", "--undo"): "give either --why or --undo",
        ("study", "-1", "--why", "x"): "-1",
        ("studi", "1", "--why", "x"): "Did you mean 'study'?",
    }.items():
        refused = hpo_here("exclude", *arguments)
        assert refused.returncode in (1, 2)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert numbers(sqlite_engine) == list(range(6))
    assert "trial 3 is excluded" in hpo_here("exclude", "study", "3", "--why", "a spoilt disk").stderr
    shown = json.loads(hpo_here("top", "study", "-n", "9", "--where", "number >= 0", "--json").stdout)
    assert 3 not in [trial["number"] for trial in shown]
    assert "trial 3 counts again" in hpo_here("exclude", "study", "3", "--undo").stderr
