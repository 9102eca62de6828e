"""ASHA (Li et al., MLSys 2020, arXiv:1810.05934): after a rung's epochs a trial goes on if it is among the best of all
that got there, else it is paused; a paused trial that has come to be among them later is promoted and resumed.

As in the paper, but for three things. A trial that is the best so far goes on even before there are enough to compare,
so that something is soon complete. There are no rungs in the second half of the epochs, where stopping saves less than
is lost. And only few trials are kept paused, since each has a checkpoint: the worst of more is pruned.

A paused trial is WAITING, with its parameters, its epochs so far, the time of the last one as its end, and the
attribute `paused_at_epoch`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sa

from hpo.search.sql import attributes
from hpo.search.sql.claims import Claim, database_now, lock_study, take
from hpo.search.sql.conditions import StudyKey, is_baseline, is_paused, is_still_there, is_stopped
from hpo.search.sql.fence import Hold, lock_held, token_of
from hpo.search.sql.storage import writing
from hpo.search.sql.tables import PAUSED_KEY, trial_intermediate_values, trial_user_attributes, trial_values, trials
from hpo.study_file.spec import Spec

MOST_PAUSED = 8

Verdict = Literal["goes on", "paused", "pruned"]


def rungs(spec: Spec) -> list[int]:
    """The epochs after which a trial may be paused: the first rung, then each reduction_factor times as many."""
    found, epoch = [], spec.first_rung
    while 2 * epoch <= spec.training.epochs:
        found.append(epoch)
        epoch *= spec.pruner.reduction_factor
    return found


def judge(engine: sa.Engine, study_id: int, spec: Spec, trial_id: int, step: int, score: float) -> Verdict:
    """What becomes of a running trial after an epoch, by its score and those of all that got as far."""
    if step not in rungs(spec):
        return "goes on"
    if math.isnan(score):
        return "pruned"
    with engine.connect() as connection:
        better, others = _compare(connection, study_id, trial_id, step, score)
    return "goes on" if better < max(1, (others + 1) // spec.pruner.reduction_factor) else "paused"


def _compare(connection: sa.Connection, study_id: int, trial_id: int, step: int, score: float) -> tuple[int, int]:
    """(how many other trials had a better score at this rung, how many got there). The baseline does not count, since
    it scores above strong augmentation after few epochs.
    """
    value = trial_intermediate_values.c
    query = (
        sa.select(sa.func.count().filter(value.intermediate_value > score), sa.func.count())
        .select_from(trials.join(trial_intermediate_values, value.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id, trials.c.trial_id != trial_id, trials.c.state != "FAIL")
        .where(value.step == step, ~is_baseline())
    )
    better, others = connection.execute(query).one()
    return better, others


def promote(
    engine: sa.Engine, study: StudyKey, worker: str, reduction_factor: int, token: str | None = None
) -> Claim | None:
    """Takes a paused trial that is now among the best at its rung, of the highest rung first; None if none is."""
    study_id, _ = study
    with engine.connect() as connection:
        stopped = connection.scalar(sa.select(is_stopped(study_id) | ~is_still_there(study)))
        found = [
            row.trial_id
            for row in ([] if stopped else _paused(connection, study_id))
            if _is_promotable(_compare(connection, study_id, row.trial_id, row.step, row.score), reduction_factor)
        ]
    for trial_id in found:
        with writing(engine) as connection:
            if claim := take(connection, sa.literal(trial_id), worker, token):
                return claim
    return None


def _is_promotable(compared: tuple[int, int], reduction_factor: int) -> bool:
    better, others = compared
    return better < (others + 1) // reduction_factor


def _paused(connection: sa.Connection, study_id: int) -> list[Any]:
    """(trial_id, number, step, score) of the paused trials, those of the highest rung first, then the best."""
    value, at = trial_intermediate_values.c, trial_user_attributes.c
    query = (
        sa.select(trials.c.trial_id, trials.c.number, value.step, value.intermediate_value.label("score"))
        .join(trial_user_attributes, (at.trial_id == trials.c.trial_id) & (at.key == PAUSED_KEY))
        .join(
            trial_intermediate_values,
            (value.trial_id == trials.c.trial_id) & (value.step == sa.cast(at.value_json, sa.Integer)),
        )
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(value.step.desc(), value.intermediate_value.desc(), trials.c.number)
    )
    return list(connection.execute(query).all())


def pause(
    engine: sa.Engine, study_id: int, hold: Hold, step: int, score: float, values: Mapping[str, Any]
) -> list[int]:
    """Pauses a running trial after this epoch, with its score and user attributes so far. The numbers of the trials
    that are pruned for it, whose checkpoints are of no use any more. Raises TrialLost.
    """
    trial_id = hold.trial_id
    with writing(engine) as connection:
        said_before = _was_paused(connection, hold)  # the answer, and what was pruned, were lost with the connection
        if not said_before:
            lock_held(connection, hold)
            attributes.write(connection, trial_user_attributes, trial_id, {**values, PAUSED_KEY: step})
            row = {"trial_id": trial_id, "objective": 0, "value": score, "value_type": "FINITE"}
            attributes.upsert(connection, trial_values, [row], ("trial_id", "objective"))
            paused = {"state": "WAITING", "datetime_complete": database_now(connection)}
            connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(paused))
        lock_study(connection, study_id)
        pruned = _prune(connection, _paused(connection, study_id)[MOST_PAUSED:])
        return _all_pruned_while_paused(connection, study_id) if said_before else pruned


def _was_paused(connection: sa.Connection, hold: Hold) -> bool:
    """Whether it is paused, and nobody has resumed it since."""
    found = connection.scalar(sa.select(trials.c.trial_id).where(trials.c.trial_id == hold.trial_id, is_paused()))
    return found is not None and token_of(connection, hold.trial_id) == hold.token


def _all_pruned_while_paused(connection: sa.Connection, study_id: int) -> list[int]:
    key = trial_user_attributes.c
    query = (
        sa.select(trials.c.number)
        .join(trial_user_attributes, (key.trial_id == trials.c.trial_id) & (key.key == PAUSED_KEY))
        .where(trials.c.study_id == study_id, trials.c.state == "PRUNED")
    )
    return list(connection.execute(query).scalars())


def prune_paused(engine: sa.Engine, study_id: int) -> list[int]:
    """Prunes the paused trials once nothing is left that could promote one: no slot and no running trial; their
    numbers.
    """
    with engine.connect() as connection:
        if not _paused(connection, study_id):
            return []
    still_open = sa.exists().where(
        trials.c.study_id == study_id, trials.c.state.in_(["WAITING", "RUNNING"]), ~is_paused()
    )
    with writing(engine) as connection:
        lock_study(connection, study_id)
        if connection.scalar(sa.select(still_open | is_stopped(study_id))):
            return []
        return _prune(connection, _paused(connection, study_id))


def _prune(connection: sa.Connection, paused: list[Any]) -> list[int]:
    """Those of them that nobody has promoted meanwhile."""
    pruned = (
        trials.update()
        .where(trials.c.trial_id.in_([row.trial_id for row in paused]), trials.c.state == "WAITING")
        .values(state="PRUNED")
        .returning(trials.c.number)
    )
    return list(connection.execute(pruned).scalars())
