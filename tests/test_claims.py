"""Whoever lost a trial changes nothing of it any more, however it was lost."""

import threading

import optuna
import pytest
import sqlalchemy as sa
from lost_answers import faults_after
from support.search import claim_next, end, give_parameter, optuna_storage, pause, report
from support.studies import make_spec

from hpo.search.sql import claims, heartbeats
from hpo.search.sql.fence import TrialLost
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trials


def state_of(engine: sa.Engine, trial_id: int) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(sa.select(trials.c.state).where(trials.c.trial_id == trial_id)))


def paused(engine: sa.Engine) -> tuple[int, claims.Claim]:
    """A study's id, and the claim of a trial that is paused since."""
    study, _ = submit(engine, make_spec(budget=4, pruner={"name": "asha"}))
    claim_next(engine, study, "another")
    claim = claim_next(engine, study, "first")
    assert claim is not None
    give_parameter(engine, claim.hold)
    report(engine, claim.hold, 1, 0.5)
    pause(engine, study.study_id, claim.hold, 1, 0.5)
    return study.study_id, claim


def resumed(engine: sa.Engine, study_id: int, claim: claims.Claim) -> claims.Claim:
    """The paused trial, promoted by another worker."""
    with engine.begin() as connection:
        found = claims.take(connection, sa.literal(claim.hold.trial_id), "second")
    assert found is not None
    assert found.number == claim.number
    assert found.start.continues == (claim.number,)
    return found


def test_a_pause_that_is_said_again_does_not_pause_who_has_resumed_the_trial_since(engine: sa.Engine) -> None:
    study_id, first = paused(engine)
    assert pause(engine, study_id, first.hold, 1, 0.5) == []  # the answer was lost, and nothing happened since
    second = resumed(engine, study_id, first)
    with pytest.raises(TrialLost, match="another worker has taken it over"):
        pause(engine, study_id, first.hold, 1, 0.5)
    assert state_of(engine, second.hold.trial_id) == "RUNNING"
    assert heartbeats.beat(engine, study_id, second.hold) == "running"


def test_late_words_of_one_who_lost_a_resumed_trial_change_nothing(engine: sa.Engine) -> None:
    study_id, first = paused(engine)
    second = resumed(engine, study_id, first)
    for late in (
        lambda: report(engine, first.hold, 2, 0.9),
        lambda: end(engine, first.hold, "COMPLETE", 0.9),
    ):
        with pytest.raises(TrialLost):
            late()
    assert not claims.give_back(engine, first.hold, "worker lost", "too late")
    assert heartbeats.beat(engine, study_id, first.hold) == "lost"
    assert state_of(engine, second.hold.trial_id) == "RUNNING"
    end(engine, second.hold, "COMPLETE", 0.7)
    end(engine, second.hold, "COMPLETE", 0.7)  # said twice
    with pytest.raises(TrialLost):
        end(engine, first.hold, "PRUNED", 0.1)
    assert state_of(engine, second.hold.trial_id) == "COMPLETE"


def test_a_claim_that_is_said_again_is_the_same_claim(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=4))
    claim = claim_next(engine, study, "worker", token="a token")  # noqa: S106 (no password)
    assert claims.claimed_before(engine, study.study_id, "a token") == claim
    assert claims.claimed_before(engine, study.study_id, "another token") is None
    study_id, first = study.study_id, claim
    assert first is not None
    give_parameter(engine, first.hold)
    report(engine, first.hold, 1, 0.5)
    pause(engine, study_id, first.hold, 1, 0.5)
    assert claims.claimed_before(engine, study.study_id, "a token") is None
    with engine.begin() as connection:
        second = claims.take(connection, first.hold.trial_id, "second", "its own")
    assert claims.claimed_before(engine, study.study_id, "its own") == second


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED", "paused"])
def test_a_heartbeat_after_the_end_of_a_trial_is_no_loss(engine: sa.Engine, state: str) -> None:
    """Between its end and the removal of its checkpoints."""
    if state == "paused":
        study_id, claim = paused(engine)
    else:
        study, _ = submit(engine, make_spec(budget=4))
        study_id = study.study_id
        taken = claim_next(engine, study, "worker")
        assert taken is not None
        claim = taken
        end(engine, claim.hold, state, 0.5)
    assert heartbeats.beat(engine, study_id, claim.hold) == "ended"


def test_the_heartbeats_of_an_ended_trial_interrupt_nobody(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_INTERVAL_SECS", 0.02)
    study, _ = submit(engine, make_spec(budget=4))
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    with heartbeats.beating(engine, study.study_id, claim):
        end(engine, claim.hold, "COMPLETE", 0.5)
        threading.Event().wait(0.5)  # while checkpoints are removed


def test_a_trial_that_was_deleted_is_said_to_be(engine: sa.Engine) -> None:
    study, _ = submit(engine, make_spec(budget=4))
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    optuna.delete_study(study_name="study", storage=optuna_storage(engine.url))
    assert heartbeats.beat(engine, study.study_id, claim.hold) == "deleted"
    with pytest.raises(TrialLost, match="it was deleted"):
        report(engine, claim.hold, 1, 0.5)


@pytest.mark.parametrize("function", ["pause", "promote", "finish"])
def test_a_study_stays_exact_when_answers_to_commits_are_lost(storage_url: str, function: str) -> None:
    _, failures = faults_after(storage_url, function, seed=0, budget=12)
    assert failures == []
