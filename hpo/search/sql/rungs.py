"""Queries and writes of ASHA and the median rule: scores at a step; pausing, promoting and pruning trials.

A paused trial is WAITING, with its parameters, its reports so far, the time it was paused as its end, and the attribute
PAUSED_KEY.
"""

import math
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.doors.objective import Measurement
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BRACKET_KEY
from hpo.search.sql.claims import Claim, lock_study, read_budget, take
from hpo.search.sql.conditions import StudyKey, is_baseline, is_paused, is_still_there, is_stopped
from hpo.search.sql.counts import count_in
from hpo.search.sql.fence import Hold, lock_held, token_of
from hpo.search.sql.reports import kept_attributes
from hpo.search.sql.storage import database_now, writing
from hpo.search.sql.tables import (
    PAUSED_KEY,
    trial_intermediate_values,
    trial_user_attributes,
    trial_values,
    trials,
)

MAX_PAUSED = 8


@dataclass(frozen=True)
class Seen:
    """A trial to compare with others. bracket: None if the study has no brackets."""

    trial_id: int
    bracket: int | None = None


def compare(engine: sa.Engine, study_id: int, trial: Seen, step: int, score: float) -> tuple[int, int]:
    """How many other trials of its bracket had a better score at this step, and how many reached it."""
    with engine.connect() as connection:
        return _compare(connection, study_id, trial, step, score)


def _compare(connection: sa.Connection, study_id: int, trial: Seen, step: int, score: float) -> tuple[int, int]:
    """The baseline does not count: without augmentation, its first scores are better."""
    value = trial_intermediate_values.c
    query = (
        sa.select(sa.func.count().filter(value.intermediate_value > score), sa.func.count())
        .select_from(trials.join(trial_intermediate_values, value.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id, trials.c.trial_id != trial.trial_id, trials.c.state != "FAIL")
        .where(value.step == step, ~is_baseline())
    )
    if trial.bracket is not None:
        query = query.where(_is_in_bracket(trial.bracket))
    better, others = connection.execute(query).one()
    return better, others


def _is_in_bracket(bracket: int) -> sa.ColumnElement[bool]:
    kept = trial_user_attributes.c
    return sa.exists().where(
        kept.trial_id == trials.c.trial_id, kept.key == BRACKET_KEY, kept.value_json == str(bracket)
    )


def complete_scores(engine: sa.Engine, study_id: int, step: int) -> list[float]:
    """The scores of the study's complete trials after this step, except the baseline's and NaN."""
    value = trial_intermediate_values.c
    query = (
        sa.select(value.intermediate_value)
        .join(trials, trials.c.trial_id == value.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", ~is_baseline())
        .where(value.step == step, value.intermediate_value.is_not(None))
    )
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def best_so_far(engine: sa.Engine, trial_id: int, score: float) -> float:
    """The best of this score and those that the trial has reported; NaN if there is none."""
    value = trial_intermediate_values.c
    with engine.connect() as connection:
        before = connection.scalar(sa.select(sa.func.max(value.intermediate_value)).where(value.trial_id == trial_id))
    return max((found for found in (score, before) if found is not None and not math.isnan(found)), default=math.nan)


def promote(
    engine: sa.Engine,
    study: StudyKey,
    worker: str,
    reduction_factor: int,
    token: str | None = None,
    most: int | None = None,
) -> Claim | None:
    """Claims a paused trial that now ranks among the best at its rung, highest rungs first; None if there is none, or
    if `most` trials run.
    """
    study_id, _ = study
    with engine.connect() as connection:
        stopped = connection.scalar(sa.select(is_stopped(study_id) | ~is_still_there(study)))
        found = [
            row.trial_id
            for row in ([] if stopped else _paused(connection, study_id))
            if _is_promotable(_compare(connection, study_id, _seen(row), row.step, row.score), reduction_factor)
        ]
    for trial_id in found:
        with writing(engine) as connection:
            if most is not None:
                lock_study(connection, study_id)
                if count_in(connection, study_id).running >= most:
                    return None
            if claim := take(connection, trial_id, worker, token):
                return claim
    return None


def _seen(row: Any) -> Seen:
    return Seen(row.trial_id, None if row.bracket is None else int(row.bracket))


def _is_promotable(compared: tuple[int, int], reduction_factor: int) -> bool:
    better, others = compared
    return better < (others + 1) // reduction_factor


def _paused(connection: sa.Connection, study_id: int) -> list[Any]:
    """(trial_id, number, step, score, bracket) of the paused trials; highest rungs first, then best scores."""
    value, at, bracket = trial_intermediate_values.c, trial_user_attributes.c, trial_user_attributes.alias()
    query = (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            value.step,
            value.intermediate_value.label("score"),
            bracket.c.value_json.label("bracket"),
        )
        .join(trial_user_attributes, (at.trial_id == trials.c.trial_id) & (at.key == PAUSED_KEY))
        .join(
            trial_intermediate_values,
            (value.trial_id == trials.c.trial_id) & (value.step == sa.cast(at.value_json, sa.Integer)),
        )
        .outerjoin(bracket, (bracket.c.trial_id == trials.c.trial_id) & (bracket.c.key == BRACKET_KEY))
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(value.step.desc(), value.intermediate_value.desc(), trials.c.number)
    )
    return list(connection.execute(query).all())


def pause(engine: sa.Engine, study_id: int, hold: Hold, measured: Measurement) -> list[int]:
    """Pauses a running trial after this step, with its score and user attributes so far, and prunes the worst beyond
    MAX_PAUSED. Returns the numbers of pruned trials, whose checkpoints are no longer needed. Raises TrialLost.
    """
    trial_id = hold.trial_id
    with writing(engine) as connection:
        paused_before = _was_paused(connection, hold)  # the first attempt took effect, but its answer was lost
        if not paused_before:
            lock_held(connection, hold)
            kept = {**kept_attributes(measured), PAUSED_KEY: measured.step}
            attributes.write(connection, trial_user_attributes, trial_id, kept)
            row = {"trial_id": trial_id, "objective": 0, "value": measured.score, "value_type": "FINITE"}
            attributes.upsert(connection, trial_values, [row], ("trial_id", "objective"))
            paused = {"state": "WAITING", "datetime_complete": database_now(connection)}
            connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(paused))
        lock_study(connection, study_id)
        pruned = _prune(connection, _paused(connection, study_id)[MAX_PAUSED:])
        return _all_pruned_while_paused(connection, study_id) if paused_before else pruned


def _was_paused(connection: sa.Connection, hold: Hold) -> bool:
    """Whether this hold has paused the trial, and nobody has resumed it since."""
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
    """Prunes all paused trials once none can be promoted any more, because no trial runs and the paused ones use up the
    budget. Returns their numbers.
    """
    with engine.connect() as connection:
        if not _only_paused_left(connection, study_id):
            return []
    with writing(engine) as connection:
        lock_study(connection, study_id)
        if not _only_paused_left(connection, study_id):
            return []
        return _prune(connection, _paused(connection, study_id))


def _only_paused_left(connection: sa.Connection, study_id: int) -> bool:
    counts = count_in(connection, study_id)
    used = counts.finished + counts.paused >= read_budget(connection, study_id)
    return bool(
        counts.paused and not counts.running and used and not connection.scalar(sa.select(is_stopped(study_id)))
    )


def _prune(connection: sa.Connection, paused: list[Any]) -> list[int]:
    """Prunes those that nobody has promoted in the meantime, and returns their numbers."""
    pruned = (
        trials.update()
        .where(trials.c.trial_id.in_([row.trial_id for row in paused]), trials.c.state == "WAITING")
        .values(state="PRUNED")
        .returning(trials.c.number)
    )
    return list(connection.execute(pruned).scalars())
