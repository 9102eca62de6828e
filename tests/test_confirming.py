"""Confirmations as a service: every run once, whatever dies; the search untouched; asked again, nothing changes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from faults import HERE
from free_objective import FreeObjective
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Hpo
from support.search import run
from support.studies import make_spec

from hpo.conclude.candidates import choose
from hpo.conclude.confirmed import Confirmed, read_confirmed
from hpo.conclude.words import conclusions
from hpo.doors.parameters import Params
from hpo.errors import StudyError
from hpo.search.confirmation import Confirmation
from hpo.search.sql.confirming import confirm, find_confirmation
from hpo.search.sql.counts import count
from hpo.search.sql.outcomes import RunOutcomes, read_outcomes
from hpo.search.sql.queries import best_trials
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.tables import metadata, trials
from hpo.search.sql.whole_study import delete, rename
from hpo.search.worker import work

SEEDS = 3


def searched(engine: sa.Engine, **changes: Any) -> Study:
    """A finished search."""
    run(engine, make_spec(budget=8, **changes))
    return find_studies(engine, ["study"])[0]


def ask(engine: sa.Engine, study: Study, top: int = 2, seeds: int = SEEDS) -> Study:
    return confirm(engine, study, *choose(engine, study, top, anyway=False), seeds, ())


def finish(engine: sa.Engine, study: Study, fault: Callable[[Params], None] | None = None) -> list[RunOutcomes]:
    """Works until the confirmation is complete."""
    work(engine, [study.name], lambda given, store: FreeObjective(given, fault=fault), "worker", lambda text: None)
    return read_outcomes(engine, study.study_id)


def results(engine: sa.Engine, study: Study, confirmation: Study, top: int = 2) -> Confirmed:
    trials = [trial.number for trial in choose(engine, study, top, anyway=False)[1]]
    found = read_confirmed(engine, study, confirmation, trials)
    assert found is not None
    return found


def rows_of(engine: sa.Engine, study: Study) -> dict[str, list[Any]]:
    """All that the database has of a study, and of its trials."""
    found = {}
    with engine.connect() as connection:
        ids = (
            connection.execute(sa.select(trials.c.trial_id).where(trials.c.study_id == study.study_id)).scalars().all()
        )
        for table in metadata.sorted_tables:
            of_study = table.c.study_id == study.study_id if "study_id" in table.c else table.c.trial_id.in_(ids)
            found[table.name] = sorted(map(repr, connection.execute(sa.select(table).where(of_study))))
    return found


def as_text(runs: list[RunOutcomes]) -> list[str]:
    """What was measured, by configuration and seed."""
    return sorted(
        f"{run.configuration} {run.seed} {run.score} "
        + " ".join(f"{each.condition} {each.severity} {each.value} {each.right!r}" for each in run.outcomes)
        for run in runs
    )


def test_baseline_candidates_and_controls_run_once_on_fresh_seeds_and_the_search_is_left_alone(
    engine: sa.Engine,
) -> None:
    study = searched(engine)
    before = rows_of(engine, study)
    confirmation = ask(engine, study)
    runs = finish(engine, confirmation)
    assert rows_of(engine, study) == before
    plan = confirmation.confirmation
    assert plan is not None
    assert [each.role for each in plan.configurations] == ["baseline", "candidate", "control", "candidate", "control"]
    assert sorted((run.configuration, run.seed) for run in runs) == [(c, s) for c in range(5) for s in (1, 2, 3)]
    best, second = best_trials(engine, "study", 2, "baseline = false")
    of_best, control = plan.configurations[1].params, plan.configurations[2].params
    assert (of_best, plan.configurations[3].params) == (best.params, second.params)
    assert control == {**best.params, "augmentation_strength": 0.0}
    assert [trial.number for trial in best_trials(engine, "study", 100)] == [
        trial.number for trial in best_trials(engine, "study", 100, "state = 'complete'")
    ]
    with engine.connect() as connection:
        assert "study@confirmation" not in connection.execute(sa.text("SELECT study FROM best_configs")).scalars().all()
        params = connection.execute(
            sa.text("SELECT params FROM trial_results WHERE study = 'study@confirmation' AND state = 'complete'")
        ).scalars()
        known = [each.params for each in plan.configurations]
        assert all(json.loads(text) in known for text in params)


def test_asked_again_nothing_changes_and_more_seeds_or_candidates_add_what_lacks(sqlite_engine: sa.Engine) -> None:
    engine = sqlite_engine
    study = searched(engine)
    confirmation = ask(engine, study)
    first = as_text(finish(engine, confirmation))
    kept = rows_of(engine, confirmation)
    again = ask(engine, study)
    assert rows_of(engine, confirmation) == kept
    assert again.confirmation is not None
    assert again.confirmation.looks == 1
    more = ask(engine, study, top=3, seeds=SEEDS + 1)
    assert more.confirmation is not None
    configurations = len(more.confirmation.configurations)  # a control may be the baseline itself
    assert (more.confirmation.looks, more.budget) == (2, configurations * (SEEDS + 1))
    after = as_text(finish(engine, more))
    assert set(first) <= set(after)
    assert len(after) == more.budget
    said = conclusions(results(engine, study, more, top=3)).about
    assert "looked at 2 times" in said[-1]


def test_a_run_that_fails_is_tried_again(sqlite_engine: sa.Engine) -> None:
    engine = sqlite_engine
    study = searched(engine)
    failures = iter([True, False, False, True])

    def fault(params: Params) -> None:
        if next(failures, False):
            raise ValueError("bad luck")

    confirmation = ask(engine, study)
    runs = finish(engine, confirmation, fault)
    assert sorted((run.configuration, run.seed) for run in runs) == [(c, s) for c in range(5) for s in (1, 2, 3)]
    assert count(engine, confirmation.study_id).failed == 2


def test_workers_that_are_killed_leave_the_same_digits(postgresql_engine: sa.Engine, tmp_path: Path) -> None:
    engine = postgresql_engine
    study = searched(engine)
    confirmation = ask(engine, study)
    quick = {"EPOCH_SECS": "0.1", "HEARTBEAT_SECS": "0.3", "GRACE_SECS": "1.5"}
    environment = os.environ | quick | {"HPO_STORAGE": engine.url.render_as_string(hide_password=False)}
    command = [sys.executable, str(HERE / "free_worker.py"), confirmation.name]
    with (tmp_path / "log").open("wb") as log:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)

        workers = [start(), start()]
        for finished in (2, 4, 6):
            while count(engine, confirmation.study_id).complete < finished:
                time.sleep(0.02)
            workers[-1].send_signal(signal.SIGKILL)
            workers.append(start())
        for worker in workers:
            worker.wait(timeout=60)
            worker.communicate()
    runs = read_outcomes(engine, confirmation.study_id)
    assert sorted((run.configuration, run.seed) for run in runs) == [(c, s) for c in range(5) for s in (1, 2, 3)]
    killed = as_text(runs)
    delete(engine, confirmation.study_id)
    assert as_text(finish(engine, ask(engine, study))) == killed


def test_what_is_shown_is_what_the_database_has(engine: sa.Engine) -> None:
    study = searched(engine)
    confirmation = ask(engine, study)
    finish(engine, confirmation)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM confirmations ORDER BY seed")).mappings().all()
    by_key: dict[Any, list[Any]] = {}
    for row in rows:
        assert (row["study"], row["accuracy"]) == ("study", row["correct"] / row["images"])
        by_key.setdefault((row["role"], row["trial"], row["condition"], row["severity"], bool(row["main"])), []).append(
            row
        )
    shown = results(engine, study, confirmation).as_json()
    assert len(shown) == len(by_key) == 5 * 3
    for each in shown:
        main = each["severity"] != 0.15
        found = by_key[each["role"], each["trial"], each["condition"], each["severity"], main]
        assert each["correct"] == [row["correct"] for row in found]
        assert each["seeds"] == [row["seed"] for row in found] == [1, 2, 3]
        assert each["images"] == 500
        assert each["accuracy"] == pytest.approx(sum(each["correct"]) / 1500)
        assert each["low"] <= each["accuracy"] <= each["high"]
        if each["role"] == "baseline":
            assert each["difference"] is None
        else:
            assert each["difference_low"] <= each["difference"] <= each["difference_high"]
            base = next(
                other["accuracy"]
                for other in shown
                if other["role"] == "baseline"
                and (other["condition"], other["severity"]) == (each["condition"], each["severity"])
            )
            assert each["difference"] == pytest.approx(each["accuracy"] - base)


def test_few_seeds_claim_nothing_and_say_how_many_would(sqlite_engine: sa.Engine) -> None:
    engine = sqlite_engine
    study = searched(engine)
    confirmation = ask(engine, study, top=1)
    finish(engine, confirmation)
    said = conclusions(results(engine, study, confirmation, top=1))
    assert not said.holds
    assert any(
        "3 seeds are too few to claim anything of 2 conditions" in each and "--seeds 7" in each for each in said.about
    )
    eight = ask(engine, study, top=1, seeds=8)
    finish(engine, eight)
    found = results(engine, study, eight, top=1)
    assert True in [row["difference_holds"] for row in json.loads(json.dumps(found.as_json()))]
    said = conclusions(found)
    assert any("under gaussian-noise" in each for each in said.holds)
    noise = next(each for each in found.of("candidate") if each.condition.key == ("gaussian-noise", 0.3))
    assert noise.to_baseline is not None
    assert f"{100 * noise.to_baseline.interval.mean:+.1f} points" in "".join(said.holds)


def test_nothing_is_claimed_of_what_does_not_count_in_the_score(sqlite_engine: sa.Engine) -> None:
    noise = {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.0}
    fog = {"name": "fog", "level": 3, "weight": 0.5}
    study = searched(sqlite_engine, objective={"clean": 0.5, "perturbations": [noise, fog]})
    confirmation = ask(sqlite_engine, study, top=1, seeds=8)
    finish(sqlite_engine, confirmation)
    found = results(sqlite_engine, study, confirmation, top=1)
    assert [each.condition.name for each in found.of("candidate") if each.condition.claimed] == ["clean"]
    said = conclusions(found)
    assert not any("gaussian-noise" in each for each in (*said.holds, *said.costs, *said.unknown))
    assert any("where nothing counts in the score: under gaussian-noise 0.3" in each for each in said.measured)


def test_a_confirmation_is_renamed_and_deleted_with_its_search(engine: sa.Engine) -> None:
    study = searched(engine)
    confirmation = ask(engine, study)
    with pytest.raises(StudyError, match="rename that one"):
        rename(engine, confirmation.study_id, "other", lambda kept, spec: None)
    kept = rename(engine, study.study_id, "new", lambda kept, spec: None)
    assert [each.study for each in kept] == ["study", "study@confirmation"]
    renamed = find_studies(engine, ["new"])[0]
    found = find_confirmation(engine, renamed)
    assert found is not None
    assert found.confirmation is not None
    assert (found.name, found.confirmation.study) == ("new@confirmation", "new")
    assert len(finish(engine, found)) == found.budget
    assert [each.study for each in delete(engine, study.study_id)] == ["new", "new@confirmation"]
    assert find_studies(engine) == []
    assert find_confirmation(engine, searched(engine)) is None


PLANS = st.lists(
    st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True), st.integers(1, 5)),
    min_size=1,
    max_size=4,
)


@given(PLANS)
def test_plans_hold_each_run_once_whatever_is_asked_in_whatever_order(asked: list[tuple[list[int], int]]) -> None:
    plan = Confirmation.of("study", "uid", 0, {"strength": 0, "rate": 1}, ())
    for numbers, seeds in asked:
        for trial in numbers:
            plan = plan.with_candidate(trial, {"strength": trial % 3, "rate": 1}, {"strength": 0, "rate": 1})
        before = plan.runs
        plan = plan.with_runs(numbers, range(seeds))
        assert plan.runs[: len(before)] == before
    assert len(set(plan.runs)) == len(plan.runs)
    params = [str(each.params) for each in plan.configurations]
    assert len(set(params)) == len(params)
    for numbers, seeds in asked:
        for trial in numbers:
            candidate = next(each for each in plan.candidates if each.trial == trial)
            assert candidate.control == 0, "the baseline is what each is without perturbed images"
            assert set(range(seeds)) <= set(plan.seeds_of(candidate.configuration)) & set(plan.seeds_of(0))
    assert Confirmation.from_json(json.loads(json.dumps(plan.as_json()))) == plan


def test_what_cannot_be_confirmed_is_said_in_a_line(hpo_here: Hpo, sqlite_engine: sa.Engine) -> None:
    def refused(*arguments: str) -> str:
        ran = hpo_here(*arguments)
        assert ran.returncode in (1, 2), ran.stdout
        assert len(ran.stderr.strip().splitlines()) == 1
        assert count_studies(sqlite_engine) == before
        return ran.stderr

    study = searched(sqlite_engine)
    before = count_studies(sqlite_engine)
    assert "Did you mean 'study'?" in refused("confirm", "stud")
    assert "has 7 different feasible trials beside its baseline, not 50" in refused("confirm", "study", "--top", "50")
    assert "--test-set" in refused("confirm", "study", "--test-set", "nowhere")
    with sqlite_engine.begin() as connection:
        connection.execute(sa.text("UPDATE study_user_attributes SET value_json = '9' WHERE key = 'budget'"))
    assert "8 of 9 trials are" in refused("confirm", "study")
    ask(sqlite_engine, study)
    before = count_studies(sqlite_engine)
    for command in ("best", "top", "pareto", "history", "importances", "confirm"):
        assert "is no search: it confirms 'study'" in refused(command, "study@confirmation")
    assert "adds to it" in refused("extend", "study@confirmation", "--budget", "100")


def count_studies(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT count(*) FROM studies")) or 0)
