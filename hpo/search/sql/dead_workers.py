"""Gives back the trials of a worker that its supervisor knows to be dead, without waiting for the grace period."""

import contextlib
import json

import sqlalchemy as sa

from hpo.search.sql.claims import give_back
from hpo.search.sql.conditions import is_baseline
from hpo.search.sql.fence import TrialLost
from hpo.search.sql.heartbeats import LOST, holds
from hpo.search.sql.reports import finish_with_worst_score
from hpo.search.sql.tables import trial_intermediate_values, trial_params, trial_user_attributes, trials

KILLED = "the kernel killed its worker, since memory ran out"


def give_back_trials_of(engine: sa.Engine, worker: str, out_of_memory: bool = False) -> bool:
    """Gives back the worker's running trials. Returns whether it had ever taken one.

    out_of_memory: whether the kernel killed it because memory ran out. A trial that had not finished a step then
    finishes with the worst score, so that the sampler learns what does not fit; except the baseline, which others are
    compared with.
    """
    query = (
        sa.select(trials.c.trial_id)
        .join(trial_user_attributes, trial_user_attributes.c.trial_id == trials.c.trial_id)
        .where(trial_user_attributes.c.key == "worker", trial_user_attributes.c.value_json == json.dumps(worker))
    )
    running = query.where(trials.c.state == "RUNNING")
    with engine.connect() as connection:
        taken = connection.scalar(query.limit(1)) is not None
        held = holds(connection, running)
        blamed = sa.select(trials.c.trial_id).where(trials.c.trial_id.in_(running), _is_too_large())
        too_large = holds(connection, blamed) if out_of_memory else []
    for hold in held:
        if hold in too_large:
            with contextlib.suppress(TrialLost):
                finish_with_worst_score(engine, hold, KILLED)
        else:
            give_back(engine, hold, "worker lost", f"{LOST}: {KILLED}" if out_of_memory else LOST)
    return taken


def _is_too_large() -> sa.ColumnElement[bool]:
    """Whether a running trial probably exhausted the memory: it had parameters, but had not finished a step. All steps
    need about the same memory.
    """
    began = sa.exists().where(trial_params.c.trial_id == trials.c.trial_id)
    measured = sa.exists().where(trial_intermediate_values.c.trial_id == trials.c.trial_id)
    return began & ~measured & ~is_baseline()
