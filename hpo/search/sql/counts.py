"""The number of a study's trials in each state."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from hpo.search.sql.conditions import is_paused
from hpo.search.sql.tables import trials


@dataclass(frozen=True)
class Counts:
    """The number of a study's trials in each state. waiting: given back, enqueued or paused; paused: those of them that
    are paused.
    """

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned

    @property
    def budgeted(self) -> int:
        """Trials that use up budget: all but failed ones."""
        return self.finished + self.running + self.waiting


_FIELD_OF_STATE = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def count(engine: sa.Engine, study_id: int) -> Counts:
    """The counts of one study."""
    with engine.connect() as connection:
        return count_in(connection, study_id)


def count_all(connection: sa.Connection, ids: Sequence[int] | None = None) -> dict[int, Counts]:
    """The counts of every study that has trials, or of these, by study_id."""
    return _count(connection, sa.true() if ids is None else trials.c.study_id.in_(ids))


def count_in(connection: sa.Connection, study_id: int) -> Counts:
    """The counts of one study, within a transaction."""
    return _count(connection, trials.c.study_id == study_id).get(study_id, Counts())


def _count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> dict[int, Counts]:
    t = trials.c
    paused = sa.func.sum(sa.case((is_paused(), 1), else_=0))
    query = sa.select(t.study_id, t.state, sa.func.count(), paused).where(which).group_by(t.study_id, t.state)
    found: dict[int, dict[str, int]] = {}
    for study_id, state, number, waiting_paused in connection.execute(query):
        counts = found.setdefault(study_id, {"paused": 0})
        counts[_FIELD_OF_STATE[state]] = number
        counts["paused"] += waiting_paused
    return {study_id: Counts(**counts) for study_id, counts in found.items()}
