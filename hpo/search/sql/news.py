"""What is new of a study since it was told last: a better trial, its end, its stop. Each is told once, whoever asks."""

from typing import Any, Literal

import sqlalchemy as sa

from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.claims import lock_study
from hpo.search.sql.conditions import StudyKey, is_still_there
from hpo.search.sql.counts import count_in
from hpo.search.sql.queries import best_trials
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import find_study
from hpo.search.sql.tables import studies, study_user_attributes

TOLD_KEY = "hpo:told"
Event = Literal["best", "ended", "stopped"]


def news(engine: sa.Engine, study: StudyKey) -> list[tuple[Event, dict[str, Any]]]:
    """(event, facts), and from now on none of these is new; none of a study that was deleted."""
    study_id, _ = study
    with engine.connect() as connection:
        name = connection.scalar(sa.select(studies.c.study_name).where(studies.c.study_id == study_id))
    with writing(engine) as connection:
        try:
            lock_study(connection, study_id)
        except StudyError:
            return []
        found = find_study(connection, str(name)) if connection.scalar(sa.select(is_still_there(study))) else None
        if found is None:
            return []
        finished = count_in(connection, study_id).finished
        best = next(iter(best_trials(engine, found.name, 1, "feasible = true")), None)
        about = {"study": found.name, "budget": found.budget, "finished": finished}
        now: dict[Event, Any] = {
            "best": best.number if best is not None and not best.baseline and found.confirmation is None else None,
            "ended": found.budget if finished >= found.budget else None,
            "stopped": found.stopped if finished < found.budget else None,
        }
        told = attributes.read_study(connection, study_id, TOLD_KEY) or {}
        new: list[Event] = [event for event, what in now.items() if what is not None and told.get(event) != what]
        if new:
            attributes.write(connection, study_user_attributes, study_id, {TOLD_KEY: told | {e: now[e] for e in new}})
    trial = best.as_json() if best is not None else None
    return [(event, about | {"stopped": found.stopped, "best": trial}) for event in new]
