"""The [stop] section: a study stops by its own rules, loses nothing, and goes on without the rule that stopped it."""

from pathlib import Path

import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import run
from support.studies import make_spec, write_study

from hpo.conclude.candidates import choose
from hpo.search.sql.confirming import confirm
from hpo.search.sql.counts import count
from hpo.search.sql.queries import all_trials, improvements
from hpo.search.sql.stopping import resume
from hpo.search.sql.studies import Study, find_studies
from hpo.search.worker import work


def study_with(engine: sa.Engine, budget: int = 30, **stop: float) -> Study:
    """After a worker has done what the rules allow."""
    run(engine, make_spec(budget=budget, stop=stop))
    return find_studies(engine, ["study"])[0]


def test_a_target_that_is_reached_ends_the_study(engine: sa.Engine) -> None:
    study = study_with(engine, target=0.5)
    ended = sorted(all_trials(engine, "study", "state = 'complete'"), key=lambda trial: str(trial.finished_at))
    reached = [trial for trial in ended if (trial.score or 0) >= 0.5]
    assert reached
    before = ended[:-1]
    assert not any(trial in reached for trial in before) or not any(trial.baseline for trial in before)
    assert study.rule == "target"
    assert study.stopped is not None
    assert f"trial {improvements(engine, 'study')[-1].number} has reached the target of 0.5" in study.stopped
    assert count(engine, study.study_id).running == 0


def test_patience_ends_the_study_and_resumed_it_uses_its_budget(sqlite_engine: sa.Engine) -> None:
    study = study_with(sqlite_engine, patience=5)
    assert study.rule == "patience"
    ended = sorted(
        all_trials(sqlite_engine, "study", "state in ('complete', 'pruned')"), key=lambda trial: str(trial.finished_at)
    )
    best = improvements(sqlite_engine, "study")[-1]
    assert [trial.number for trial in ended].index(best.number) == len(ended) - 1 - 5
    assert len(ended) < 30
    assert resume(sqlite_engine, study)
    work(sqlite_engine, ["study"], lambda spec, store: FreeObjective(spec), "worker", lambda text: None)
    assert count(sqlite_engine, study.study_id).finished == 30, "the rule was lifted"


def test_hours_end_the_study(sqlite_engine: sa.Engine) -> None:
    study = study_with(sqlite_engine, max_hours=1e-7)
    assert study.rule == "max_hours"
    assert count(sqlite_engine, study.study_id).finished in (0, 1)


def test_a_rule_that_does_not_apply_changes_nothing(sqlite_engine: sa.Engine) -> None:
    study = study_with(sqlite_engine, budget=5, target=5.0, patience=5, max_hours=10)
    assert (study.rule, count(sqlite_engine, study.study_id).finished) == (None, 5)


def test_a_study_that_stopped_by_its_rule_is_done(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    study = study_with(sqlite_engine, target=0.5)
    confirmation = confirm(sqlite_engine, study, *choose(sqlite_engine, study, 1, anyway=False), 1, ())
    assert confirmation.spec.stop.target is None
    assert "hpo resume study" in hpo_here("status").stdout.replace("\n", " ")
    assert hpo_here("report", "study").returncode == 0


def test_hpo_run_ends_well_and_says_why(hpo_here: Hpo, tmp_path: Path) -> None:
    file = write_study(tmp_path, budget=9, training={"epochs": 1, "horizontal_flip": False})
    given = ("run", file, "--set", "stop.target=0.01", "--set", "model.input_size=16")
    for _ in range(2):
        ran = hpo_here(*given)
        assert ran.returncode == 0, ran.stderr
        assert "Best configurations of study" in ran.stdout
        assert "has reached the target of 0.01" in ran.stderr


def test_mistakes_are_one_line(hpo_here: Hpo, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    for setting, said in {
        "stop.patience=0": "stop.patience: must be greater than or equal to 1",
        "stop.targt=1": "Did you mean 'target'?",
        "stop.max_hours=-1": "stop.max_hours: must be greater than 0",
    }.items():
        refused = hpo_here("submit", file, "--set", setting)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
