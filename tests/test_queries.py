"""Fronts, histories, importances and status, against what plain Python makes of Optuna's own trials."""

from datetime import UTC, datetime, timedelta

import optuna
import pytest
import sqlalchemy as sa
from large_study import fill
from optuna.distributions import IntDistribution
from support.search import claim_next, optuna_storage, report, run
from support.studies import make_spec

from hpo.errors import HpoError
from hpo.search.importances import parameter_importances
from hpo.search.sql import attributes, claims, queries
from hpo.search.sql.attributes import SPLIT_KEY
from hpo.search.sql.counts import Counts
from hpo.search.sql.reports import record_params
from hpo.search.sql.status import status
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import study_user_attributes, trial_heartbeats, trials


@pytest.fixture
def large(engine: sa.Engine) -> optuna.Study:
    """A study of 300 made-up trials, a part of them infeasible, as Optuna loads it."""
    fill(engine, "large", 300)
    return optuna.load_study(study_name="large", storage=optuna_storage(engine.url))


def test_fronts_and_histories_are_what_python_finds(engine: sa.Engine, large: optuna.Study) -> None:
    complete = [trial for trial in large.trials if trial.state.name == "COMPLETE"]
    feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    assert 0 < len(feasible) < len(complete)

    def both(trial: optuna.trial.FrozenTrial) -> tuple[float, float]:
        return trial.user_attrs["parts"]["clean"], trial.user_attrs["mean_perturbed_accuracy"]

    def is_beaten(trial: optuna.trial.FrozenTrial) -> bool:
        return any(
            a >= both(trial)[0] and b >= both(trial)[1] and (a, b) != both(trial) for a, b in map(both, complete)
        )

    front = {trial.number for trial in complete if not is_beaten(trial)}
    assert {
        trial.number for trial in queries.pareto_front(engine, "large", ("clean_accuracy", "perturbed_accuracy"))
    } == front

    better, highest = [], float("-inf")
    for trial in sorted(feasible, key=lambda trial: (trial.datetime_complete, trial.number)):
        if trial.value > highest:
            highest = trial.value
            better.append(trial.number)
    assert [trial.number for trial in queries.improvements(engine, "large")] == better
    assert better[-1] == queries.best_trials(engine, "large", 1)[0].number


def test_feasible_trials_come_first_then_the_least_infeasible(engine: sa.Engine, large: optuna.Study) -> None:
    found = queries.best_trials(engine, "large", 1000)
    assert [trial.feasible for trial in found] == sorted((trial.feasible for trial in found), reverse=True)
    infeasible = [trial.clean_accuracy for trial in found if not trial.feasible]
    assert infeasible == sorted(infeasible, reverse=True)


def test_importances_are_optunas(engine: sa.Engine, large: optuna.Study) -> None:
    (study,) = find_studies(engine, ["large"])
    shares = parameter_importances(engine, study)
    expected = optuna.importance.get_param_importances(large, params=study.spec.search.searched)
    assert shares == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(1)


def test_importances_of_too_few_trials_are_refused(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    with pytest.raises(HpoError, match=r"importances need at least 4 complete trials; study .* has 0"):
        parameter_importances(engine, study)


def test_a_study_without_trials_or_deleted_meanwhile_gives_nothing(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    assert queries.best_trials(engine, "study", 5) == []
    assert status(engine, study).best is None
    optuna.delete_study(study_name="study", storage=optuna_storage(engine.url))
    assert queries.pareto_front(engine, "study", None) == []
    for query in (queries.improvements, queries.all_trials):
        assert query(engine, "study") == []
    assert status(engine, study).counts == Counts()


def test_status_tells_what_runs_where_since_when_and_how_long_it_will_take(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=10))
    assert status(engine, study).trials_per_hour is None
    for number in range(6):
        claim = claim_next(engine, study, f"host:{number}")
        assert claim is not None
        if number < 4:
            finish_after(engine, claim.hold.trial_id, secs=60)
        else:
            record_params(engine, claim.hold, {}, {})
            report(engine, claim.hold, 1, 0.5)
    found = status(engine, study)
    assert [(trial.number, trial.worker, trial.step) for trial in found.running] == [
        (4, "host:4", 1),
        (5, "host:5", 1),
    ]
    assert found.trials_per_hour == pytest.approx(120)  # two workers, a minute each
    assert found.secs_left == pytest.approx(6 * 30)
    seconds_ago = timedelta(seconds=25)
    with engine.begin() as connection:
        connection.execute(
            trial_heartbeats.update().values(heartbeat=datetime.now(UTC).replace(tzinfo=None) - seconds_ago)
        )
    assert 24 < (status(engine, study).running[0].secs_since_heartbeat or 0) < 35
    assert claims.give_back(engine, claim.hold, "stopped", "its worker was asked to stop")
    again = status(engine, study)
    assert (again.failed, again.interrupted, again.failures) == (0, 1, [])
    assert (again.as_json()["failed"], again.as_json()["interrupted"]) == (0, 1)
    shown = found.as_json()
    assert (shown["running"], shown["waiting"], shown["finished"]) == (2, 4, 4)
    assert len(shown["running_trials"]) == 2


def test_a_trial_that_goes_on_shows_the_epochs_that_it_goes_on_from(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(training={"epochs": 6}))
    for _ in range(2):  # interrupted twice, the second time before it had measured anything
        claim = claim_next(engine, study, "host:1")
        assert claim is not None
        record_params(engine, claim.hold, {"batch_size": 16}, {"batch_size": IntDistribution(16, 64)})
        if not claim.start.continues:
            for epoch in range(1, 6):
                report(engine, claim.hold, epoch, 0.5)
        assert claims.give_back(engine, claim.hold, "stopped", "its worker was asked to stop")
    claim = claim_next(engine, study, "host:1")
    other = claim_next(engine, study, "host:2")
    assert claim is not None
    assert other is not None
    assert len(claim.start.continues) == 2
    epochs = {trial.number: trial.step for trial in status(engine, study).running}
    assert epochs == {claim.number: 5, other.number: 0}
    record_params(engine, claim.hold, {}, {})
    report(engine, claim.hold, 1, 0.5)  # its checkpoint was lost
    assert {trial.number: trial.step for trial in status(engine, study).running}[claim.number] == 1


def test_status_knows_the_images_when_a_worker_has_loaded_them(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    assert status(engine, study).as_json()["split"] is None
    split = {"train": 900, "tuning": 100, "test": 1, "classes": 10}
    with engine.begin() as connection:
        attributes.write(connection, study_user_attributes, study.study_id, {SPLIT_KEY: split})
    assert status(engine, study).as_json()["split"] == split


def finish_after(engine: sa.Engine, trial_id: int, secs: float) -> None:
    ended = datetime.now(UTC).replace(tzinfo=None)
    times = {"datetime_start": ended - timedelta(seconds=secs), "datetime_complete": ended}
    with engine.begin() as connection:
        connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(state="COMPLETE", **times))


def test_what_was_measured_is_what_the_best_says(engine: sa.Engine) -> None:
    optuna_study = run(engine, make_spec(budget=5))
    best = queries.best_trials(engine, "study", 1)[0]
    assert best.number == optuna_study.best_trial.number
    row = best.as_row()
    assert row["gaussian_noise"] == best.perturbed_accuracy["gaussian-noise"]
    assert {"batch_size", "learning_rate", "finished_at"} <= set(row)
