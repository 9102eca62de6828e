"""Configurations that kill their workers: after a few of them in a row they count as failed."""

import json
from collections.abc import Sequence

import sqlalchemy as sa

from hpo.search.sql.attributes import WHY_KEY
from hpo.search.sql.tables import trial_intermediate_values, trial_system_attributes, trials

MAX_DEATHS = 3
"""Workers that may die in a row in the same step of a configuration before it counts as failed."""
DEATHS = ("worker lost", "device failed")
"""Of the reasons for which a trial is given back, those that its configuration may be at fault for."""


def died_repeatedly(connection: sa.Connection, study_id: int, trial_id: int, continues: Sequence[int]) -> bool:
    """Whether this trial and those it continues lost MAX_DEATHS workers in a row without finishing another step."""
    why = trial_system_attributes.c
    last_step = sa.func.coalesce(sa.func.max(trial_intermediate_values.c.step), 0)
    query = (
        sa.select(trials.c.trial_id, last_step)
        .outerjoin(trial_intermediate_values, trial_intermediate_values.c.trial_id == trials.c.trial_id)
        .join(trial_system_attributes, (why.trial_id == trials.c.trial_id) & (why.key == WHY_KEY))
        .where(trials.c.study_id == study_id, why.value_json.in_([json.dumps(death) for death in DEATHS]))
        .where((trials.c.trial_id == trial_id) | trials.c.number.in_(list(continues[: MAX_DEATHS - 1])))
        .group_by(trials.c.trial_id)
    )
    steps = [step for _, step in connection.execute(query.order_by(trials.c.trial_id))]
    return len(steps) == MAX_DEATHS and steps[-1] <= steps[0]
