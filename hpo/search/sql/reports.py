"""Writes of a running trial: its parameters, each step, its end.

Each is one idempotent transaction that first locks the trial's row and changes nothing if the hold was lost (fence.py).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo.doors.objective import BelowBaseline, Constraint, Measurement
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BRACKET_KEY, RIGHT_KEY, TROUBLE_KEY
from hpo.search.sql.claims import lock_study
from hpo.search.sql.conditions import is_baseline
from hpo.search.sql.fence import Hold, lock_held, token_of
from hpo.search.sql.old_attributes import PARTS_KEY, PARTS_KEYS, REPORTS_KEY, parts_of
from hpo.search.sql.outcomes import outcome_attributes, packed
from hpo.search.sql.storage import database_now, writing
from hpo.search.sql.tables import (
    CONSTRAINT_PREFIX,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

WORST_SCORE = 0.0
"""Of a trial that has no score of its own, unless others of the study score even less."""
UNSCORED_KEY = "hpo:unscored"
"""Of a trial, whether it has no score of its own: it ran out of memory, or its score was no number."""


@dataclass(frozen=True)
class KeptFile:
    """A file in the artifact store, under its artifact_id (hexadecimal digits and hyphens)."""

    artifact_id: str
    filename: str
    mimetype: str


def record_params(
    engine: sa.Engine,
    hold: Hold,
    params: Mapping[str, Any],
    distributions: "Mapping[str, BaseDistribution]",
    bracket: int | None = None,
) -> None:
    """Stores a trial's parameters, and its bracket if there are several. Raises TrialLost."""
    from optuna.distributions import distribution_to_json

    rows = [
        {
            "trial_id": hold.trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in params.items()
    ]
    with writing(engine) as connection:
        lock_held(connection, hold)
        attributes.upsert(connection, trial_params, rows, ("trial_id", "param_name"))
        if bracket is not None:
            attributes.write(connection, trial_user_attributes, hold.trial_id, {BRACKET_KEY: bracket})


def record_step(engine: sa.Engine, hold: Hold, measured: Measurement, reports: Sequence[Mapping[str, float]]) -> None:
    """Stores the score of a step, and scores and parts of all steps so far. Raises TrialLost."""
    _record(engine, hold, {measured.step: measured.score}, reports)


def record_replayed(engine: sa.Engine, hold: Hold, reports: Sequence[Mapping[str, float]]) -> None:
    """Stores at once the steps up to a checkpoint, which were measured by the trial that this one continues. Raises
    TrialLost.
    """
    _record(engine, hold, {int(report["step"]): report["score"] for report in reports}, reports)


def _record(engine: sa.Engine, hold: Hold, scores: Mapping[int, float], reports: Sequence[Mapping[str, float]]) -> None:
    columns = ("intermediate_value", "intermediate_value_type")
    rows = [
        {"trial_id": hold.trial_id, "step": step, **_value_and_type(score, *columns)} for step, score in scores.items()
    ]
    with writing(engine) as connection:
        lock_held(connection, hold)
        attributes.upsert(connection, trial_intermediate_values, rows, ("trial_id", "step"))
        attributes.write(connection, trial_user_attributes, hold.trial_id, {REPORTS_KEY: list(reports)})


def record_trouble(engine: sa.Engine, hold: Hold, trouble: str | None) -> None:
    """Stores why the trial waits; None when it continues. Raises TrialLost."""
    with writing(engine) as connection:
        lock_held(connection, hold)
        attributes.write(connection, trial_user_attributes, hold.trial_id, {TROUBLE_KEY: trouble})


def kept_attributes(measured: Measurement) -> dict[str, Any]:
    """A trial's user attributes after this step. JSON has no numbers that are not finite."""
    parts = {name: value if math.isfinite(value) else None for name, value in measured.parts.items()}
    return {PARTS_KEY: parts, **measured.attributes}


def finish(
    engine: sa.Engine, hold: Hold, state: str, score: float, measured: Measurement, files: Sequence[KeptFile] = ()
) -> None:
    """Ends a trial, COMPLETE or PRUNED, with its score (NaN: the study's worst, since Optuna allows no NaN as a
    result), its user attributes, its constraints and its files. Raises TrialLost.
    """
    trial_id = hold.trial_id
    with writing(engine) as connection:
        if _has_ended(connection, hold):  # the first attempt took effect, but its answer was lost
            return
        study_id = lock_held(connection, hold).study_id
        unscored = math.isnan(score)
        if unscored or score < WORST_SCORE:
            lock_study(connection, study_id)  # of two that end at once, one sees the other's score
        if unscored:
            score = _worst_score(connection, study_id)
        elif score < WORST_SCORE:
            _lower_unscored(connection, study_id, score)
        row = {"trial_id": trial_id, "objective": 0, **_value_and_type(score, "value", "value_type")}
        attributes.upsert(connection, trial_values, [row], ("trial_id", "objective"))
        attributes.write(connection, trial_user_attributes, trial_id, kept_attributes(measured))
        attributes.write(connection, trial_user_attributes, trial_id, outcome_attributes(measured.outcomes))
        system: dict[str, Any] = dict(map(_as_optunas_artifact, files))
        if measured.outcomes:
            system[RIGHT_KEY] = [None if each.right is None else packed(each.right) for each in measured.outcomes]
        if unscored:
            system[UNSCORED_KEY] = True
        attributes.write(connection, trial_system_attributes, trial_id, system)
        ended = {"state": state, "datetime_complete": database_now(connection)}
        connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(ended))
        _record_constraints(connection, study_id, trial_id, measured.constraints)


def finish_with_worst_score(
    engine: sa.Engine, hold: Hold, out_of_memory: str, constraints: Mapping[str, Constraint] | None = None
) -> None:
    """Completes a trial that ran out of memory, so that the sampler, which ignores failed trials, learns from it.
    Raises TrialLost.
    """
    nothing = Measurement(0, math.nan, attributes={"out_of_memory": out_of_memory}, constraints=constraints or {})
    finish(engine, hold, "COMPLETE", math.nan, nothing)


def _worst_score(connection: sa.Connection, study_id: int) -> float:
    lowest = sa.select(sa.func.min(trial_values.c.value)).join(trials, trials.c.trial_id == trial_values.c.trial_id)
    found: float | None = connection.scalar(lowest.where(trials.c.study_id == study_id))
    return WORST_SCORE if found is None else min(WORST_SCORE, found)


def _lower_unscored(connection: sa.Connection, study_id: int, score: float) -> None:
    """Trials that got the worst score before one was worse are not better than that one."""
    unscored = (
        sa.select(trials.c.trial_id)
        .join(trial_system_attributes, trial_system_attributes.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trial_system_attributes.c.key == UNSCORED_KEY)
    )
    higher = sa.and_(trial_values.c.trial_id.in_(unscored), trial_values.c.value > score)
    lowered = _value_and_type(score, "value", "value_type")
    connection.execute(trial_values.update().where(higher).values(lowered))


def _as_optunas_artifact(file: KeptFile) -> tuple[str, str]:
    """The attribute that `optuna.artifacts.upload_artifact` would write; it does not accept our trials."""
    return f"artifacts:{file.artifact_id}", json.dumps(asdict(file) | {"encoding": None})


def _has_ended(connection: sa.Connection, hold: Hold) -> bool:
    state = connection.scalar(sa.select(trials.c.state).where(trials.c.trial_id == hold.trial_id))
    return state in ("COMPLETE", "PRUNED") and token_of(connection, hold.trial_id) == hold.token


def _value_and_type(value: float, value_column: str, type_column: str) -> dict[str, Any]:
    """A number in Optuna's columns; what SQL cannot store is NULL with a type."""
    if math.isfinite(value):
        return {value_column: value, type_column: "FINITE"}
    if math.isnan(value):
        return {value_column: None, type_column: "NAN"}
    return {value_column: None, type_column: "INF_POS" if value > 0 else "INF_NEG"}


def violation(constraint: Constraint, parts: Mapping[str, float], baseline: Mapping[str, float] | None) -> float | None:
    """Above 0 if infeasible; None if unknown, such as before the baseline is complete."""
    if not isinstance(constraint, BelowBaseline):
        return float(constraint)
    if baseline is None or baseline.get(constraint.part) is None or parts.get(constraint.part) is None:
        return None
    return baseline[constraint.part] - parts[constraint.part] - constraint.at_most


def _record_constraints(
    connection: sa.Connection, study_id: int, trial_id: int, constraints: Mapping[str, Constraint]
) -> None:
    """Sets Optuna's constraints: numbers on this trial; comparisons with the baseline on every complete trial that
    lacks them, once the baseline is complete.

    Runs in the transaction that completes a trial, under the study's lock, so that whichever of trial and baseline
    completes second sees the other. The difference is also a user attribute, since optuna-dashboard 0.21 does not show
    constraints.
    """
    numbers = {name: limit for name, limit in constraints.items() if not isinstance(limit, BelowBaseline)}
    kept = {f"{CONSTRAINT_PREFIX}{name}": float(value) for name, value in numbers.items()}
    attributes.write(connection, trial_system_attributes, trial_id, kept)
    comparisons = {name: limit for name, limit in constraints.items() if isinstance(limit, BelowBaseline)}
    if not comparisons:
        return
    lock_study(connection, study_id)
    found = _complete_without(connection, study_id, [f"{CONSTRAINT_PREFIX}{name}" for name in comparisons])
    baseline = next((parts for parts, is_baseline in found.values() if is_baseline), None)
    if baseline is None:
        return
    for other_id, (parts, _) in found.items():
        for name, limit in comparisons.items():
            exceeded = violation(limit, parts, baseline)
            if exceeded is not None:
                drop = {name: baseline[limit.part] - parts[limit.part]}
                attributes.write(connection, trial_user_attributes, other_id, drop)
                constraint = {f"{CONSTRAINT_PREFIX}{name}": exceeded}
                attributes.write(connection, trial_system_attributes, other_id, constraint)


def _complete_without(
    connection: sa.Connection, study_id: int, keys: Sequence[str]
) -> dict[int, tuple[dict[str, float], bool]]:
    """(parts, whether it is the baseline) of the baseline and of complete trials that lack these system attributes."""
    known = (
        sa.select(sa.func.count())
        .where(trial_system_attributes.c.trial_id == trials.c.trial_id, trial_system_attributes.c.key.in_(keys))
        .scalar_subquery()
    )
    chosen = (
        sa.select(trials.c.trial_id, is_baseline().label("baseline"))
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", is_baseline() | (known < len(keys)))
        .subquery()
    )
    user = trial_user_attributes.c
    query = sa.select(chosen.c.trial_id, chosen.c.baseline, user.key, user.value_json).join(
        trial_user_attributes, user.trial_id == chosen.c.trial_id
    )
    kept: dict[tuple[int, bool], dict[str, Any]] = {}
    for trial_id, baseline, key, text in connection.execute(query.where(user.key.in_(PARTS_KEYS))):
        kept.setdefault((trial_id, bool(baseline)), {})[key] = json.loads(text)
    return {trial_id: (parts_of(values), baseline) for (trial_id, baseline), values in kept.items()}
