"""The search on both databases: exact budgets, no trial claimed twice, constraints and choices as Optuna sees them."""

import collections
import threading
import time
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from optuna.distributions import IntDistribution
from support.search import claim_next, end, give_parameter, open_fresh, optuna_storage, run, running
from support.studies import make_spec

from hpo.doors.parameters import Params
from hpo.errors import StudyError, WorkerError
from hpo.search.sql import claims, heartbeats, queries
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.fence import Hold
from hpo.search.sql.joining import check_fingerprints
from hpo.search.sql.reports import finish_with_worst_score, record_params
from hpo.search.sql.status import status
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.sql.url import masked, parse_url
from hpo.search.worker import work


def test_the_budget_is_used_exactly_and_the_baseline_comes_first(engine: sa.Engine) -> None:
    spec = make_spec(budget=8, pruner={"name": "asha"}, training={"epochs": 9})
    study = run(engine, spec)
    states = collections.Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] + states["PRUNED"] == len(study.trials) == 8
    assert study.trials[0].params == spec.search.baseline()
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE
    for trial in study.trials:
        reported = 9 if trial.state == optuna.trial.TrialState.COMPLETE else len(trial.intermediate_values)
        assert sorted(trial.intermediate_values) == list(range(1, reported + 1))


def test_best_is_what_optuna_says(engine: sa.Engine) -> None:
    study = run(engine, make_spec(budget=12))
    best = queries.best_trials(engine, "study", 12)
    assert best[0].score == study.best_value
    assert best[0].number == study.best_trial.number
    assert best[0].params == study.best_params
    assert [trial.score for trial in best] == sorted((trial.value for trial in study.trials), reverse=True)


def test_constraints_agree_with_optuna_also_for_trials_that_ended_before_the_baseline(engine: sa.Engine) -> None:
    objective = {
        "clean": 0.5,
        "max_clean_drop": 0.02,
        "perturbations": [{"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}],
    }
    spec = make_spec(budget=12, objective=objective)
    submitted, _ = submit(engine, spec)
    baseline = claim_next(engine, submitted, "other", baseline_alone=True)
    assert baseline is not None
    thread = threading.Timer(1.0, lambda: claims.give_back(engine, baseline.hold, "stopped", "later"))
    thread.start()  # the baseline is given back, and so it runs last
    study = run(engine, spec)
    thread.join()
    feasible = {t.number for t in study.trials if t.constraints and all(v <= 0 for v in t.constraints.values())}
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    (again,) = [trial for trial in complete if "baseline" in trial.user_attrs]
    assert again.number > 0
    assert all(trial.constraints for trial in complete)
    shown = queries.best_trials(engine, "study", 20)
    assert {trial.number for trial in shown if trial.feasible} == feasible
    assert 0 < len(feasible) < len(complete)
    assert shown[0].number == study.best_trial.number
    assert [trial.feasible for trial in shown] == sorted((trial.feasible for trial in shown), reverse=True)
    least = again.user_attrs["parts"]["clean"] - 0.02
    assert feasible == {t.number for t in complete if t.user_attrs["parts"]["clean"] >= least}


@pytest.mark.parametrize("value", ["baseline", {"choices": ["pretrained", "baseline"]}])
def test_trials_that_start_from_the_baseline_wait_for_it(engine: sa.Engine, value: object) -> None:
    search = {"initial_weights": value, "learning_rate": {"low": 0.01, "high": 0.1}}
    study, _ = submit(engine, make_spec(search=search))
    baseline = claim_next(engine, study, "other", baseline_alone=True)
    assert baseline is not None
    assert claim_next(engine, study, "other", baseline_alone=True) is None
    claims.give_back(engine, baseline.hold, "stopped", "test")
    optuna_study = run(engine, study.spec)
    finished = [trial for trial in optuna_study.trials if trial.state.name == "COMPLETE"]
    assert min(finished, key=lambda trial: trial.datetime_start).user_attrs["baseline"]
    starts = [trial.params["initial_weights"] for trial in finished if "baseline" not in trial.user_attrs]
    assert set(starts) <= ({"baseline"} if value == "baseline" else {"pretrained", "baseline"})


def test_no_slot_is_claimed_twice(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=40))
    claimed: list[int] = []

    def claim_all() -> None:
        while (claim := claim_next(engine, study, "other")) is not None:
            claimed.append(claim.hold.trial_id)

    threads = [threading.Thread(target=claim_all) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 40
    assert count(engine, study.study_id) == Counts(running=40)


def test_the_known_good_configuration_starts_first_then_the_baseline_then_the_others(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=4))
    taken = [claim_next(engine, study, "w") for _ in range(4)]
    assert [claim.number for claim in taken if claim] == [1, 0, 2, 3]
    first, second = (claim.start for claim in taken[:2] if claim)
    assert (first.baseline, first.fixed_params) == (False, study.spec.search.defaults())
    assert (second.baseline, second.fixed_params) == (True, study.spec.search.baseline())


def test_the_baseline_runs_within_the_budget_also_beside_enqueued_trials(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=3))
    optuna_study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    for size in (16, 32):
        optuna_study.enqueue_trial({"batch_size": size})
    taken = [claim_next(engine, study, "w") for _ in range(4)]
    assert [claim and claim.start.baseline for claim in taken] == [False, False, True, None]
    assert count(engine, study.study_id) == Counts(running=3)


def test_what_was_interrupted_goes_on_before_anything_new_starts(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=6))
    first, baseline, _ = (claim_next(engine, study, "w") for _ in range(3))
    assert first is not None
    assert baseline is not None
    record_params(engine, first.hold, {"batch_size": 16}, {"batch_size": IntDistribution(16, 16)})
    claims.give_back(engine, first.hold, "stopped", "stopped")
    claims.give_back(engine, baseline.hold, "failure", "disk full")
    taken = [claim_next(engine, study, "w") for _ in range(3)]
    assert [claim and (claim.number, claim.start.continues, claim.start.baseline) for claim in taken] == [
        (3, (1,), False),
        (5, (), False),
        (6, (), False),
    ], "a failed baseline, which could fail again, waits until nothing else does"
    rest = [claim_next(engine, study, "w") for _ in range(3)]
    assert [claim and (claim.number, claim.start.baseline) for claim in rest] == [(7, False), (4, True), None]


def test_a_warm_start_tries_the_best_of_an_earlier_study_first(engine: sa.Engine) -> None:
    run(engine, make_spec(budget=8))
    search = {"batch_size": {"choices": [64, 128]}, "learning_rate": {"low": 0.05, "high": 0.1}, "frozen_layers": 2}
    search |= {"augmentation_strength": {"low": 0.0, "high": 0.5}}
    warm = make_spec(name="warm", budget=7, search=search, warm_start="study")
    study, _ = submit(engine, warm)
    tried = {}
    while claim := claim_next(engine, study, "w"):
        tried[claim.number] = claim.start.fixed_params
    best = [trial for trial in queries.best_trials(engine, "study", 8) if not trial.baseline]
    expected: list[Params] = []
    for trial in best[:4]:
        if (nearest := warm.search.nearest(trial.params)) not in expected:
            expected.append(nearest)
    assert [tried[number] for number in range(1, 1 + len(expected))] == expected
    assert all(params.get("batch_size", 64) in (64, 128) for params in tried.values())
    assert all(0.05 <= params.get("learning_rate", 0.05) <= 0.1 for params in tried.values())
    assert submit(engine, warm)[1] is False, "said twice"


def test_a_grid_takes_no_warm_start() -> None:
    search = {
        "batch_size": 16,
        "learning_rate": {"choices": [0.01, 0.1]},
        "frozen_layers": 3,
        "augmentation_strength": 1.0,
    }
    with pytest.raises(ValueError, match="warm_start: the grid tries all its points anyway; leave warm_start out"):
        make_spec(budget=3, search=search, sampler={"name": "grid"}, warm_start="earlier")


def test_a_warm_start_from_a_study_without_results_says_so(engine: sa.Engine) -> None:
    submit(engine, make_spec())
    with pytest.raises(StudyError, match=r"warm_start: no study 'studi'; there are: study\. Did you mean 'study'"):
        submit(engine, make_spec(name="warm", warm_start="studi"))
    with pytest.raises(StudyError, match="warm_start: study 'study' has no complete trial yet"):
        submit(engine, make_spec(name="warm", warm_start="study"))
    assert [study.name for study in find_studies(engine)] == ["study"], "nothing half-written"


def test_a_slot_that_is_given_back_keeps_its_values_and_its_place_in_the_budget(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=3))
    baseline = claim_next(engine, study, "other", baseline_alone=True)
    assert baseline is not None
    assert claims.give_back(engine, baseline.hold, "stopped", "stopped")
    assert not claims.give_back(engine, baseline.hold, "stopped", "stopped"), "once only"
    assert count(engine, study.study_id) == Counts(failed=1, waiting=1)
    optuna_study = run(engine, study.spec)
    again = optuna_study.trials[1]
    assert (again.params, again.user_attrs["baseline"]) == (study.spec.search.baseline(), True)
    assert len(optuna_study.trials) == 4
    assert optuna_study.trials[0].user_attrs["interruption"] == "stopped"


def test_trials_of_dead_workers_are_given_out_again(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "GRACE_PERIOD_SECS", 1.0)
    time.sleep(1.0)  # the server itself must be older
    study, _ = submit(engine, make_spec(budget=4))
    for _ in range(3):
        claim_next(engine, study, "other")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2026-01-01 00:00:00' WHERE trial_id <= 1")
        connection.exec_driver_sql("DELETE FROM trial_heartbeats WHERE trial_id = 2")
        connection.exec_driver_sql("UPDATE trials SET datetime_start = '2026-01-01 00:00:00' WHERE trial_id = 2")
    assert heartbeats.reap(engine, study.study_id) == 2
    assert heartbeats.reap(engine, study.study_id) == 0
    assert count(engine, study.study_id) == Counts(failed=2, running=1, waiting=2)


def test_submitting_twice_changes_nothing_and_a_change_is_refused(engine: sa.Engine) -> None:
    spec = make_spec()
    first, new = submit(engine, spec)
    again, not_new = submit(engine, spec)
    assert (new, not_new) == (True, False)
    assert first == again
    with pytest.raises(StudyError, match=r"submitted with training\.epochs = 3, not 5; choose another name"):
        submit(engine, make_spec(training={"epochs": 5, "horizontal_flip": False}))
    assert len(optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials) == 0
    optuna.create_study(study_name="foreign", storage=optuna_storage(engine.url))
    with pytest.raises(StudyError, match="was not made by hpo"):
        submit(engine, make_spec(name="foreign"))


def test_all_that_differs_is_said_and_an_extended_budget_is_no_difference(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=4))
    extend(engine, study, 5)

    def refused(**changes: object) -> str:
        with pytest.raises(StudyError) as caught:
            submit(engine, make_spec(**changes))
        return str(caught.value).removeprefix("study 'study' was submitted with ")

    epochs = {"epochs": 5, "horizontal_flip": False}
    assert refused(budget=4, training=epochs).startswith("training.epochs = 3, not 5; choose another name")
    assert refused(budget=5, training=epochs).startswith("training.epochs = 3, not 5; choose another name")
    said = refused(budget=9, seed=1, training=epochs)
    assert said.startswith("seed = 0, not 1; training.epochs = 3, not 5; budget = 5, not 9; choose another name")
    assert refused(budget=9).endswith("; to add to it: hpo extend study --budget 9")
    objective: dict[str, Any] = make_spec().objective.model_dump()
    stronger = objective | {
        "perturbations": [objective["perturbations"][0] | {"sigma": 0.4}, objective["perturbations"][1]]
    }
    assert "objective.perturbations.gaussian-noise.sigma = 0.3, not 0.4; choose" in refused(
        budget=4, objective=stronger
    )
    turned = objective | {"perturbations": objective["perturbations"][::-1]}
    assert "objective.perturbations in another order; choose" in refused(budget=4, objective=turned)
    many = {
        "batch_size": 16,
        "learning_rate": {"choices": [0.1, 0.2]},
        "frozen_layers": 1,
        "augmentation_strength": 0.5,
    }
    said = refused(budget=4, seed=1, training=epochs, search=many)
    assert said.count(", not ") == 8
    assert "; and " in said


def test_processes_that_submit_at_once_make_one_study(storage_url: str) -> None:
    outcomes: list[bool] = []

    def submit_one() -> None:
        outcomes.append(submit(open_fresh(storage_url), make_spec())[1])

    threads = [threading.Thread(target=submit_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 5 + [True]


def test_trials_are_counted_not_stored_in_advance(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=1_000_000))
    assert count(engine, study.study_id) == Counts()
    assert status(engine, study).as_json()["waiting"] == 1_000_000
    for _ in range(3):
        claim_next(engine, study, "w")
    assert count(engine, study.study_id) == Counts(running=3)
    assert status(engine, study).as_json()["waiting"] == 999_997


def test_an_unknown_study_suggests_the_nearest(engine: sa.Engine) -> None:
    submit(engine, make_spec(name="robust"))
    with pytest.raises(StudyError, match=r"no study 'robsut' .* there are: robust\. Did you mean 'robust'\?"):
        find_studies(engine, ["robsut"])


def test_a_failed_trial_keeps_its_traceback_and_its_slot_is_used_by_another(engine: sa.Engine) -> None:
    failures = iter([True])

    def fail_once(params: Params) -> None:
        if params["augmentation_strength"] != 0 and next(failures, False):
            raise ZeroDivisionError("a bug")

    study = run(engine, make_spec(), fail_once)
    failed = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert len(failed) == 1
    assert failed[0].user_attrs["failure"].endswith("ZeroDivisionError: a bug\n")
    assert sum(trial.state.name == "COMPLETE" for trial in study.trials) == 6


def test_a_study_whose_trials_all_fail_stops_and_says_why(engine: sa.Engine) -> None:
    def fail(params: Params) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(WorkerError, match=r"3 trials failed, .* trial 3: ZeroDivisionError: a bug"):
        run(engine, make_spec(), fail)


def test_a_worker_that_lost_its_trial_drops_it_and_goes_on(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    lost: list[Hold] = []

    def lose_the_first(params: Params) -> None:
        if not lost:
            lost.append(running(engine))
            claims.give_back(engine, lost[0], "stopped", "taken over")

    optuna_study = run(engine, study.spec, lose_the_first)
    states = collections.Counter(trial.state.name for trial in optuna_study.trials)
    assert states == {"COMPLETE": 6, "FAIL": 1}
    assert [t.intermediate_values for t in optuna_study.trials if t.state.name == "FAIL"] == [{}]


def test_what_ran_out_of_memory_is_never_better_than_what_has_a_score(engine: sa.Engine) -> None:
    """Also where scores are below 0, and in whatever order the trials end."""
    study, _ = submit(engine, make_spec(budget=3))
    holds = [claim.hold for _ in range(3) if (claim := claim_next(engine, study, "worker"))]
    for hold in holds:
        give_parameter(engine, hold)
    finish_with_worst_score(engine, holds[0], "too large")
    end(engine, holds[1], "COMPLETE", -5.5, {"clean": 0.5})
    end(engine, holds[2], "COMPLETE", -1.5, {"clean": 0.5})
    scores = {trial.value for trial in optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials}
    assert scores == {-5.5, -1.5}
    assert queries.best_trials(engine, "study", 1)[0].score == -1.5


def test_a_worker_with_other_images_refuses_to_join(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    check_fingerprints(engine, study, {"images": "a" * 64, "weights": "none"}, {})
    check_fingerprints(engine, study, {"images": "a" * 64, "weights": "none"}, {})
    with pytest.raises(
        StudyError, match=r"has other images than this machine \(fingerprint aaaaaaaaaaaa, not bbbbbbbbbbbb"
    ):
        check_fingerprints(engine, study, {"images": "b" * 64, "weights": "none"}, {})


def test_workers_take_all_open_studies(engine: sa.Engine) -> None:
    for name in ("first", "second"):
        submit(engine, make_spec(name=name, budget=3))
    work(engine, [], FreeObjective, "worker", lambda text: None)
    assert [status(engine, study).counts.finished for study in find_studies(engine)] == [3, 3]


def test_a_password_is_never_shown() -> None:
    url = parse_url("postgresql://user:s3cret@host/db")
    assert masked(url) == "postgresql://user:***@host/db"
    assert "s3cret" not in repr(url)


def test_study_objects_load_from_any_process(engine: sa.Engine) -> None:
    submitted, _ = submit(engine, make_spec(name="naïve 中文"))
    found = find_studies(engine, ["naïve 中文"])
    assert found == [submitted]
    assert found == [Study(submitted.study_id, submitted.spec, budget=6, uid=submitted.uid, first=())]
