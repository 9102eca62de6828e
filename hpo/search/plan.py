"""What the slots of a new study try: its baseline, what is tried first, a grid's points; the rest is the sampler's."""

import json
from collections.abc import Sequence
from random import Random

import sqlalchemy as sa

from hpo.doors.parameters import Params
from hpo.search.sql.claims import Slot
from hpo.search.sql.views import trial_results
from hpo.study_file.spec import Spec

WARM_STARTS = 4
"""So many of an earlier study's configurations are tried first."""


def plan_slots(spec: Spec, tried_first: Sequence[Params] = ()) -> list[Slot]:
    """The baseline; what is to be tried first, the file's defaults among it; then the rest of the budget.

    A grid's points are dealt out here, in an order drawn from the seed.
    """
    search = spec.search
    slots = [Slot(search.baseline(), baseline=True)]
    if spec.sampler.name == "grid":
        points = search.grid()
        Random(spec.seed).shuffle(points)  # noqa: S311 (not for secrets)
        return [*slots, *(Slot(point) for point in points)][: spec.budget]
    for params in (*tried_first, search.defaults()):
        if all(params != slot.fixed_params for slot in slots):
            slots.append(Slot(params))
    return [*slots, *(Slot() for _ in range(spec.budget))][: spec.budget]


def best_params(connection: sa.Connection, study: str) -> list[Params]:
    """The best WARM_STARTS configurations of a study, feasible ones first, without its baseline."""
    t = trial_results.c
    query = (
        sa.select(t.params)
        .where(t.study == study, t.state == "complete", t.score.is_not(None), ~t.baseline)
        .order_by(t.feasible.desc(), t.score.desc(), t.number)
        .limit(WARM_STARTS)
    )
    return [json.loads(params) for params in connection.execute(query).scalars()]
