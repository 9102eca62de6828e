"""How a worker shares itself between the studies that are open: so that workers' time goes to each by its priority.

No worker asks the database for it: each estimates what all workers spend on each study from how many of its trials are
running. Simulated with 1 to 8 workers, priorities up to 5 and trials ten times as long in one study as in another, the
shares come out within a tenth of what they should be; where some workers serve one study only, the others make up for
it.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.counts import Counts
from hpo.search.sql.studies import Study

TURN_SECS = 30.0
"""Smaller differences do not count, so that a worker need not set up another study after each trial."""
HALF_LIFE_SECS, REMEMBERED = 3600.0, 0.98
"""How it was shared long ago matters less: after an hour half as much, but after one long trial nearly as much."""


@dataclass
class Shares:
    """used: seconds that workers spent on each study, as far as this one saw."""

    used: dict[StudyKey, float] = field(default_factory=dict)

    def in_turn(self, todo: Sequence[tuple[Study, Counts]], ready: Container[StudyKey]) -> list[Study]:
        """Studies that workers have spent least on first, in relation to their priority; then those with the fewest
        running trials, then those that this worker has set up. A new study begins with as much as the least.
        """
        known = [self.used[study.key] / study.spec.priority for study, _ in todo if study.key in self.used]
        for study, _ in todo:
            self.used.setdefault(study.key, study.spec.priority * min(known, default=0.0))

        def turn(each: tuple[Study, Counts]) -> tuple[float, float, bool, int]:
            study, counts = each
            share, running = (value / study.spec.priority for value in (self.used[study.key], counts.running))
            return share // TURN_SECS, running, study.key not in ready, study.study_id

        return [study for study, _ in sorted(todo, key=turn)]

    def note(self, todo: Sequence[tuple[Study, Counts]], taken: Study, secs: float) -> None:
        """Adds what workers spent on each study while this one worked on `taken`."""
        remembered = max(REMEMBERED, 0.5 ** (secs / HALF_LIFE_SECS))
        for study, counts in todo:
            busy = counts.running + (study.key == taken.key)
            self.used[study.key] = remembered * self.used[study.key] + secs * busy
