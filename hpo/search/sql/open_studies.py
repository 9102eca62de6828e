"""Which studies have trials left to run. Workers ask time and again, so finished ones must cost next to nothing."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from hpo.search.sql.attributes import BUDGET_KEY
from hpo.search.sql.counts import Counts, count_all
from hpo.search.sql.studies import Study, find_studies, load_studies
from hpo.search.sql.tables import studies, study_user_attributes

RECOUNT_SECS = 60.0


@dataclass
class Finished:
    """What a worker remembers of finished studies: they are counted again if their name or budget changes, and once a
    minute, since other tools may delete trials.
    """

    known: dict[int, tuple[str, str]] = field(default_factory=dict)
    counted_at: float = -math.inf


def open_studies(
    engine: sa.Engine, names: Sequence[str] = (), finished: Finished | None = None
) -> list[tuple[Study, Counts]]:
    """The named studies, or all, that are not stopped and whose budgets are not used.

    finished: remembers others from call to call. Raises StudyError if a named study does not exist, cannot be read, or
    needs another version of hpo.
    """
    if names:
        for study in find_studies(engine, names):
            study.refuse()
    with engine.connect() as connection:
        counts = _unfinished(connection, finished or Finished())
        found = load_studies(connection, names, list(counts)) if counts else {}
    loaded = (study for study in found.values() if isinstance(study, Study))
    return [(study, counts[study.study_id]) for study in loaded if not study.stopped]


def open_and_latest(engine: sa.Engine, latest: int) -> tuple[list[Study], int]:
    """All studies whose budgets are not used, and of the finished ones the `latest` that were submitted last; how many
    are left out.
    """
    with engine.connect() as connection:
        memory = Finished()
        counts = _unfinished(connection, memory)
        shown = sorted(memory.known)[-latest:]
        found = load_studies(connection, ids=[*counts, *shown])
    return [study for study in found.values() if isinstance(study, Study)], len(memory.known) - len(shown)


def _unfinished(connection: sa.Connection, finished: Finished) -> dict[int, Counts]:
    """The counts of studies whose budgets are not used, by study_id."""
    a = study_user_attributes.c
    query = sa.select(a.study_id, studies.c.study_name, a.value_json).join(studies, studies.c.study_id == a.study_id)
    budgets = {study_id: (name, text) for study_id, name, text in connection.execute(query.where(a.key == BUDGET_KEY))}
    if time.monotonic() - finished.counted_at > RECOUNT_SECS:
        finished.known, finished.counted_at = {}, time.monotonic()
    unknown = [study_id for study_id, budget in budgets.items() if finished.known.get(study_id) != budget]
    if not unknown:
        return {}
    counts = count_all(connection, unknown if len(unknown) < len(budgets) else None)
    found = {study_id: counts.get(study_id, Counts()) for study_id in unknown}
    for study_id, count in list(found.items()):
        if count.finished >= int(budgets[study_id][1]):
            finished.known[study_id] = budgets[study_id]
            del found[study_id]
    return found
