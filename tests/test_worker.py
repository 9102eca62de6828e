"""What the worker does when things go wrong in a trial, and what a slot carries from one trial to the next."""

import errno
import io
import math
import sys
import time
from dataclasses import replace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from rich.console import Console
from sqlalchemy.exc import OperationalError
from support.search import claim_next, end, give_parameter, optuna_storage, report, run, running, states
from support.studies import make_spec

from hpo.cli.status_tables import status_view
from hpo.doors.objective import Trial
from hpo.doors.parameters import Params
from hpo.errors import DataError, InputError, StorageError, StudyError, WorkerError
from hpo.search import failures
from hpo.search.failures import Decision, decide
from hpo.search.sql import attributes, claims, heartbeats
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.fence import TrialLost
from hpo.search.sql.outages import is_outage
from hpo.search.sql.queries import all_trials
from hpo.search.sql.status import status
from hpo.search.sql.stopping import resume
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.sql.tables import study_user_attributes, trials
from hpo.search.sql.trials_in_memory import History
from hpo.search.sql.whole_study import TABLES_OF_TRIALS
from hpo.search.worker import work
from hpo.stopping import Stopped


def caused(cause: Exception) -> Exception:
    error = RuntimeError("in the objective")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "attempt", "action"),
    [
        (MemoryError("too much"), 0, "score worst"),
        (DataError("no images"), 0, "leave"),
        (StorageError("away for hours"), 0, "leave"),
        (OSError(errno.EIO, "lost disk"), 0, "retry"),
        (OSError(errno.ESTALE, "lost NFS"), 3, "retry"),
        (caused(ConnectionResetError()), 0, "retry"),
        (TimeoutError(), 0, "retry"),
        (OSError(errno.EIO, "lost disk"), len(failures.RETRY_SECS), "leave"),
        (FileNotFoundError(errno.ENOENT, "no file"), 0, "fail"),
        (ValueError("a bug"), 0, "fail"),
    ],
)
def test_what_is_done_about_an_error(error: Exception, attempt: int, action: str) -> None:
    assert decide(error, attempt).action == action


def test_waits_grow() -> None:
    waits = [decide(TimeoutError(), attempt).wait_secs for attempt in range(len(failures.RETRY_SECS))]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert decide(ValueError(), 0) == Decision("fail", 0)


def test_out_of_memory_is_a_finished_bad_trial_that_the_sampler_sees(engine: sa.Engine) -> None:
    def need_memory(params: Params) -> None:
        if params["batch_size"] == 64 and params["augmentation_strength"]:
            raise MemoryError("64 images do not fit")

    spec = make_spec(budget=8, sampler={"name": "random"})
    study = run(engine, spec, need_memory)
    assert states(study) == ["COMPLETE"] * 8
    bad = [trial for trial in study.trials if trial.params["batch_size"] == 64 and trial.number]
    assert bad
    assert {trial.value for trial in bad} == {0.0}
    assert all(trial.user_attrs["out_of_memory"] == "64 images do not fit" for trial in bad)
    seen = History(engine, 1, spec.name).study().get_trials(deepcopy=False)
    assert sum(trial.value == 0.0 for trial in seen) == len(bad)


def test_a_score_that_is_no_number_is_a_finished_bad_trial(engine: sa.Engine) -> None:
    class Diverging(FreeObjective):
        def run(self, trial: Trial) -> Any:
            for measurement in super().run(trial):
                yield replace(measurement, score=math.nan) if trial.number == 1 else measurement

    submit(engine, make_spec(budget=3))
    work(engine, [], Diverging, "worker", lambda text: None)
    study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    assert states(study) == ["COMPLETE"] * 3
    assert study.trials[1].value == 0.0
    assert all(math.isnan(value) for value in study.trials[1].intermediate_values.values())


def test_the_worst_score_is_worse_than_all_others_also_where_scores_are_negative(engine: sa.Engine) -> None:
    class Loss(FreeObjective):
        def run(self, trial: Trial) -> Any:
            for measurement in super().run(trial):
                yield replace(measurement, score=math.nan if trial.number == 3 else measurement.score - 5)

    submit(engine, make_spec(budget=4))
    work(engine, [], Loss, "worker", lambda text: None)
    study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    scores = [trial.value for trial in study.trials]
    assert scores[3] == min(scores) < -4


def test_what_passes_is_tried_again_in_the_same_trial(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "RETRY_SECS", (0.01, 0.01))
    lost = iter([OSError(errno.EIO, "lost"), ConnectionResetError()])

    def lose_the_disk(params: Params) -> None:
        if (error := next(lost, None)) is not None:
            raise error

    study = run(engine, make_spec(budget=3), lose_the_disk)
    assert states(study) == ["COMPLETE"] * 3


def test_while_a_trial_waits_status_says_for_what(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "RETRY_SECS", (0.01,))
    study, said = submit(engine, make_spec(budget=1))[0], []
    full = iter([OSError(errno.ENOSPC, "No space left on device", "/artifacts/x")])

    def fill_the_disk(params: Params) -> None:
        if (error := next(full, None)) is not None:
            raise error

    def look(secs: float) -> None:
        running = status(engine, study)
        out = Console(width=200, file=io.StringIO())
        out.print(status_view([running], tracebacks=False))
        said.append((running.running[0].trouble, out.file.getvalue()))  # type: ignore[attr-defined]

    monkeypatch.setattr(time, "sleep", look)
    run(engine, make_spec(budget=1), fill_the_disk)
    (trouble, shown) = said[0]
    assert trouble == "/artifacts/x: No space left on device"
    assert "trial 0 waits: /artifacts/x: No space left on device" in shown


def test_what_does_not_pass_is_the_machines_trouble_and_no_failure(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "RETRY_SECS", (0.01, 0.01))

    def full_disk(params: Params) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/artifacts/x")

    with pytest.raises(InputError, match="/artifacts/x: No space left on device"):
        run(engine, make_spec(budget=3), full_disk)
    assert count(engine, 1) == Counts(failed=1, waiting=2), "the trial that was given back, and the baseline"
    assert "failure" not in run(engine, make_spec(budget=3)).trials[0].user_attrs


def test_a_configuration_that_fails_is_not_tried_again_unless_it_is_the_baseline(engine: sa.Engine) -> None:
    failed: list[Params] = []

    def fail_twice(params: Params) -> None:
        if len(failed) < 2:
            failed.append(params)
            raise ZeroDivisionError("a bug")

    search = {"augmentation_strength": {"low": 0.0, "high": 1.0, "default": 0.7}, "batch_size": 32}
    study = run(engine, make_spec(budget=3, search=search), fail_twice)
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    defaults, baseline = failed
    assert [trial.params for trial in study.trials[:2]] == [baseline, defaults]
    finished = [trial.params for trial in study.trials if trial.state.name == "COMPLETE"]
    assert baseline in finished
    assert defaults not in finished


def test_a_configuration_that_asks_to_exit_has_failed(engine: sa.Engine) -> None:
    """It would end one worker after another, each with its trial given back."""
    asked: list[Params] = []

    def exit_once(params: Params) -> None:
        if not asked:
            asked.append(params)
            sys.exit("no convergence")

    study = run(engine, make_spec(budget=3), exit_once)
    (failed,) = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert "the objective called sys.exit('no convergence')" in failed.user_attrs["failure"]


def test_a_request_to_stop_that_code_has_caught_is_obeyed_after_the_step(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Cython's modules catch it when they are imported: such a worker held its trial until it was ended."""

    def caught(params: Params) -> None:
        monkeypatch.setattr("hpo.stopping._requested", True)

    def turned_into_another(params: Params) -> None:
        caught(params)
        raise ImportError("numpy.random could not be imported")

    for number, fault in enumerate((caught, turned_into_another), 1):
        with pytest.raises(Stopped):
            run(engine, make_spec(budget=3), fault)
        assert count(engine, 1) == Counts(failed=number, waiting=2), "given back"
        monkeypatch.setattr("hpo.stopping._requested", False)
    assert not any(trial.failure for trial in all_trials(engine, "study"))


def test_a_worker_that_is_set_up_wrongly_leaves_its_trial_to_others(engine: sa.Engine) -> None:
    def no_images(params: Params) -> None:
        raise DataError("the images are gone")

    with pytest.raises(DataError, match="the images are gone"):
        run(engine, make_spec(budget=3), no_images)
    assert count(engine, 1) == Counts(failed=1, waiting=2)
    study = run(engine, make_spec(budget=3))
    assert study.trials[1].user_attrs["interruption"] == "the images are gone"
    assert "failure" not in study.trials[1].user_attrs


def test_an_interrupted_trial_goes_on_with_its_parameters_and_its_checkpoints(engine: sa.Engine) -> None:
    given: list[Trial] = []

    class Interrupted(FreeObjective):
        def run(self, trial: Trial) -> Any:
            given.append(trial)
            if len(given) in (2, 3):
                claims.give_back(engine, running(engine), "stopped", "stopped")
            return super().run(trial)

    spec = make_spec(budget=3)
    submit(engine, spec)
    work(engine, [], Interrupted, "worker", lambda text: None)
    assert [trial.number for trial in given] == [1, 0, 2, 3, 4]
    assert given[1].params == given[2].params == given[3].params
    study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    assert study.trials[3].user_attrs["continues"] == [2, 0]
    assert states(study) == ["FAIL", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_configuration_in_which_workers_die_again_and_again_counts_as_failed(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=1))
    for step in (2, 0, 3, 3, 3):  # the third makes progress, the next two do not
        claim = claim_next(engine, study, "w")
        assert claim is not None
        give_parameter(engine, claim.hold)
        if step:
            report(engine, claim.hold, step, 0.5)
        claims.give_back(engine, claim.hold, "worker lost", "its worker was lost")
    optuna_study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    failed = ["failure" in trial.user_attrs for trial in optuna_study.trials if trial.state.name == "FAIL"]
    assert failed == [False, False, False, False, True]
    assert optuna_study.trials[-1].state.name == "WAITING"
    assert "continues" not in optuna_study.trials[-1].user_attrs


def test_a_study_that_is_deleted_in_the_middle_ends_its_workers_in_a_line(engine: sa.Engine) -> None:
    def delete(params: Params) -> None:
        optuna.delete_study(study_name="study", storage=optuna_storage(engine.url))

    with pytest.raises(StudyError, match="no study 'study' in this storage"):
        run(engine, make_spec(), delete)


def test_late_reports_of_a_lost_trial_change_nothing(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    claim = claim_next(engine, study, "w")
    assert claim is not None
    report(engine, claim.hold, 1, 0.5)
    report(engine, claim.hold, 1, 0.5)  # written before
    claims.give_back(engine, claim.hold, "stopped", "taken over")
    with pytest.raises(TrialLost):
        report(engine, claim.hold, 2, 0.9)
    with pytest.raises(TrialLost):
        end(engine, claim.hold, "COMPLETE", 0.9)
    assert heartbeats.beat(engine, study.study_id, claim.hold) == "lost"
    trial = optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials[claim.number]
    assert trial.intermediate_values == {1: 0.5}
    assert (trial.value, trial.user_attrs.get("parts")) == (None, None)


def test_a_trial_that_is_ended_twice_ended_once(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    claim = claim_next(engine, study, "w")
    assert claim is not None
    for _ in range(2):
        end(engine, claim.hold, "COMPLETE", 0.5)
    assert not claims.give_back(engine, claim.hold, "stopped", "too late")
    assert count(engine, study.study_id) == Counts(complete=1, waiting=1)


def test_trials_that_another_tool_deletes_or_adds_leave_the_budget_exact(engine: sa.Engine) -> None:
    spec = make_spec(budget=6)
    optuna_study = run(engine, spec)
    with engine.begin() as connection:
        for table in (*TABLES_OF_TRIALS, trials):
            connection.execute(table.delete().where(table.c.trial_id > 4))
    optuna_study = run(engine, spec)
    assert states(optuna_study) == ["COMPLETE"] * 6
    (study,) = find_studies(engine)
    extend(engine, study, 8)
    for _ in range(5):
        optuna_study.enqueue_trial({"batch_size": 16})
    optuna_study = run(engine, spec)
    assert states(optuna_study) == ["COMPLETE"] * 8 + ["WAITING"] * 3
    assert [trial.params["batch_size"] for trial in optuna_study.trials[6:8]] == [16, 16], (
        "what is asked for comes first"
    )


def test_a_failed_study_stops_and_goes_on_after_resume(engine: sa.Engine) -> None:
    def fail(params: Params) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(WorkerError, match=r"3 trials failed, .* a bug; `hpo resume study` continues it"):
        run(engine, make_spec(), fail)
    (study,) = find_studies(engine)
    assert study.stopped is not None
    assert resume(engine, study)
    assert not resume(engine, study)
    assert sorted(states(run(engine, make_spec()))) == ["COMPLETE"] * 6 + ["FAIL"] * 3


def test_a_study_is_extended_also_when_it_is_finished(engine: sa.Engine) -> None:
    spec = make_spec(budget=3)
    run(engine, spec)
    (study,) = find_studies(engine)
    assert extend(engine, study, 5) == 2
    assert extend(engine, study, 5) == 0
    assert len(run(engine, spec).trials) == 5, "the same file again is no change"
    run(engine, make_spec(budget=5))
    with pytest.raises(StudyError, match=r"to add to it: hpo extend study --budget 9"):
        submit(engine, make_spec(budget=9))


def test_an_extended_grid_goes_on_with_its_other_points(engine: sa.Engine) -> None:
    search = {"batch_size": {"choices": [16, 32]}, "learning_rate": {"choices": [0.01, 0.1]}}
    spec = make_spec(budget=3, search=search, sampler={"name": "grid"})
    run(engine, spec)
    (study,) = find_studies(engine)
    with pytest.raises(StudyError, match="the grid and the baseline are 5 trials, not 6"):
        extend(engine, study, 6)
    extend(engine, study, 5)
    points = {(trial.params["batch_size"], trial.params["learning_rate"]) for trial in run(engine, spec).trials[1:]}
    assert len(points) == 4


def test_a_worker_of_an_incompatible_version_refuses_to_join(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec())
    with engine.begin() as connection:
        attributes.write(connection, study_user_attributes, study.study_id, {"protocol": [99, "9.0"]})
    with pytest.raises(StudyError, match=r"'study' was submitted by hpo 9\.0, this is hpo .* \(protocol 99, not"):
        work(engine, ["study"], FreeObjective, "worker", lambda text: None)
    said: list[str] = []
    work(engine, [], FreeObjective, "worker", said.append)  # of all studies: this one is left out
    assert len(said) == 1
    assert "can be read" in said[0]
    assert find_studies(engine, ["study"])[0].refused
    assert count(engine, study.study_id) == Counts()


@pytest.mark.parametrize(("sqlstate", "outage"), [(None, True), ("57P01", True), ("40P01", True), ("42P01", False)])
def test_an_outage_is_told_from_a_mistake(sqlstate: str | None, outage: bool) -> None:
    class ServerError(Exception):
        pass

    ServerError.sqlstate = sqlstate  # type: ignore[attr-defined]
    assert is_outage(OperationalError("SELECT", None, ServerError())) is outage


def test_a_table_that_is_not_there_is_no_outage(engine: sa.Engine) -> None:
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
        connection.exec_driver_sql("SELECT * FROM absent")
    assert not is_outage(raised.value)
