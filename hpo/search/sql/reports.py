"""What a running trial writes: its parameters, each epoch, its end.

Each is one transaction that first locks the trial's row and changes nothing if the trial is no longer held with the
same token (claims.py). Each may be said twice.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo.doors.objective import Picture
from hpo.search.sql import attributes
from hpo.search.sql.attributes import TROUBLE_KEY
from hpo.search.sql.claims import database_now, lock_study
from hpo.search.sql.conditions import is_baseline
from hpo.search.sql.fence import Hold, lock_held, token_of
from hpo.search.sql.storage import writing
from hpo.search.sql.tables import (
    CONSTRAINT_KEY,
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


def record_params(
    engine: sa.Engine, hold: Hold, params: Mapping[str, Any], distributions: "Mapping[str, BaseDistribution]"
) -> None:
    """Stores what a trial tries. Raises TrialLost."""
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


def record_epoch(
    engine: sa.Engine, hold: Hold, step: int, score: float, epochs: list[Any], notes: Mapping[str, Any]
) -> None:
    """Stores an epoch's score, the accuracies of all epochs so far, and the pruner's notes. Raises TrialLost."""
    value = _value_and_type(score, "intermediate_value", "intermediate_value_type")
    row = {"trial_id": hold.trial_id, "step": step, **value}
    with writing(engine) as connection:
        lock_held(connection, hold)
        attributes.upsert(connection, trial_intermediate_values, [row], ("trial_id", "step"))
        attributes.write(connection, trial_user_attributes, hold.trial_id, {"epochs": epochs})
        attributes.write(connection, trial_system_attributes, hold.trial_id, notes)


def record_trouble(engine: sa.Engine, hold: Hold, trouble: str | None) -> None:
    """Why the trial waits; None once it goes on. Raises TrialLost."""
    with writing(engine) as connection:
        lock_held(connection, hold)
        attributes.write(connection, trial_user_attributes, hold.trial_id, {TROUBLE_KEY: trouble})


def finish(
    engine: sa.Engine,
    hold: Hold,
    state: str,
    score: float,
    values: Mapping[str, Any],
    max_clean_drop: float | None,
    pictures: Sequence[Picture] = (),
) -> None:
    """Ends a trial, COMPLETE or PRUNED, with its score, its user attributes and its pictures. Raises TrialLost."""
    trial_id = hold.trial_id
    with writing(engine) as connection:
        if _has_ended(connection, hold):  # said before; the answer was lost with the connection
            return
        study_id = lock_held(connection, hold).study_id
        row = {"trial_id": trial_id, "objective": 0, **_value_and_type(score, "value", "value_type")}
        attributes.upsert(connection, trial_values, [row], ("trial_id", "objective"))
        attributes.write(connection, trial_user_attributes, trial_id, values)
        attributes.write(connection, trial_system_attributes, trial_id, dict(map(_as_optunas_artifact, pictures)))
        ended = {"state": state, "datetime_complete": database_now(connection)}
        connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(ended))
        if max_clean_drop is not None:
            _record_constraints(connection, study_id, max_clean_drop)


def finish_with_worst_score(
    engine: sa.Engine, hold: Hold, out_of_memory: str, max_clean_drop: float | None = None
) -> None:
    """So that the sampler learns where memory ends: failed trials it would not see. Raises TrialLost."""
    finish(engine, hold, "COMPLETE", WORST_SCORE, {"out_of_memory": out_of_memory}, max_clean_drop)


def _as_optunas_artifact(picture: Picture) -> tuple[str, str]:
    """As `optuna.artifacts.upload_artifact` would note it, which takes no trial of ours."""
    return f"artifacts:{picture.artifact_id}", json.dumps(asdict(picture) | {"encoding": None})


def _has_ended(connection: sa.Connection, hold: Hold) -> bool:
    state = connection.scalar(sa.select(trials.c.state).where(trials.c.trial_id == hold.trial_id))
    return state in ("COMPLETE", "PRUNED") and token_of(connection, hold.trial_id) == hold.token


def _value_and_type(value: float, value_column: str, type_column: str) -> dict[str, Any]:
    """Optuna stores what SQL cannot as NULL and a type."""
    if math.isfinite(value):
        return {value_column: value, type_column: "FINITE"}
    if math.isnan(value):
        return {value_column: None, type_column: "NAN"}
    return {value_column: None, type_column: "INF_POS" if value > 0 else "INF_NEG"}


def _record_constraints(connection: sa.Connection, study_id: int, max_clean_drop: float) -> None:
    """Sets Optuna's constraint on every complete trial that lacks it, once the baseline's clean accuracy is known.

    In the transaction that completes a trial, under the study's lock: whichever of a trial and the baseline comes
    second sees the other. The drop is a user attribute too, since optuna-dashboard 0.21 does not show constraints.
    """
    lock_study(connection, study_id)
    clean = trial_user_attributes.alias()
    is_known = sa.exists().where(
        trial_system_attributes.c.trial_id == trials.c.trial_id, trial_system_attributes.c.key == CONSTRAINT_KEY
    )
    scored = (
        sa.select(trials.c.trial_id, clean.c.value_json, is_baseline().label("baseline"), is_known.label("known"))
        .join(clean, clean.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", clean.c.key == "clean_accuracy")
        .where(is_baseline() | ~is_known)
    )
    rows = connection.execute(scored).all()
    baseline = next((float(json.loads(row.value_json)) for row in rows if row.baseline), None)
    if baseline is None:
        return
    for row in rows:
        if not row.known:
            drop = baseline - float(json.loads(row.value_json))
            attributes.write(connection, trial_system_attributes, row.trial_id, {CONSTRAINT_KEY: drop - max_clean_drop})
            attributes.write(connection, trial_user_attributes, row.trial_id, {"clean_drop": drop})
