"""What a confirmation found: accuracies over seeds with intervals, and differences to the baseline and to the control,
paired on seeds and images.

Something is claimed only of clean images and of what counts in the score, in a fixed order: the best candidate is
compared with the baseline, then with its control, then comes the next candidate. Within each step the p-values are
corrected for the number of conditions (Holm), and under each condition nothing further is claimed after the first
comparison that does not hold. So where nothing differs, at most 5 % of confirmations claim anything at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from hpo.conclude.results import Condition, Difference, Key, Result
from hpo.conclude.statistics import Interval, Table, holm, interval, p_value
from hpo.errors import InputError
from hpo.search.confirmation import Candidate, Confirmation, Role
from hpo.search.sql.outcomes import RunOutcomes, read_outcomes
from hpo.search.sql.queries import trials_in
from hpo.search.sql.studies import Study
from hpo.study_file.images import ImageSpec
from hpo.study_file.spec import Spec


@dataclass(frozen=True)
class Confirmed:
    """results: the baseline's, and of each candidate its own and its control's, under every condition; candidates:
    those that were asked for, the best first; missing: how many runs are not complete.
    """

    search: Study
    confirmation: Confirmation
    candidates: tuple[Candidate, ...]
    results: tuple[Result, ...]
    missing: int
    gains: dict[int, Interval]
    """Of each candidate, by trial: its score on fresh seeds and locked data less the baseline's."""
    first_runs: dict[int, int]
    """The number of the run that kept its weights, by configuration."""
    promised: dict[int, float]
    """The same as the search saw it: with one seed, on the data that it chose by."""

    @property
    def seeds(self) -> int:
        """How many seeds all comparisons have."""
        return min((len(result.seeds) for result in self.results), default=0)

    @property
    def claims(self) -> int:
        """How many conditions something is claimed of."""
        return sum(each.condition.claimed for each in self.of("baseline"))

    def of(self, role: Role, trial: int | None = None) -> list[Result]:
        """Those of a role, and of a trial's."""
        return [each for each in self.results if each.role == role and trial in (None, each.trial)]

    def as_json(self) -> list[dict[str, Any]]:
        return [result.as_json() for result in self.results]


class _Tables:
    """The outcomes of a confirmation as tables of seeds and images."""

    def __init__(self, runs: Sequence[RunOutcomes], spec: Spec) -> None:
        scored = spec.objective.perturbations if isinstance(spec, ImageSpec) else []
        self.unclaimed = {perturbation.name for perturbation in scored if not perturbation.weight}
        self.runs: dict[tuple[int, int], RunOutcomes] = {(run.configuration, run.seed): run for run in runs}
        self.by_key = {
            place: {(each.condition, each.severity): each for each in run.outcomes} for place, run in self.runs.items()
        }

    def seeds(self, *configurations: int) -> list[int]:
        """Those that are complete of all these."""
        kept = [{seed for place, seed in self.runs if place == each} for each in configurations]
        return sorted(set.intersection(*kept))

    def conditions(self) -> list[Condition]:
        """Of the first run; all have the same. Raises InputError if images from disk were not."""
        found: dict[Key, Condition] = {}
        digests: dict[Key, set[str | None]] = {}
        for run in self.runs.values():
            for each in run.outcomes:
                key = (each.condition, each.severity)
                images = None if each.right is None else len(each.right)
                claimed = each.main and each.condition not in self.unclaimed
                found.setdefault(key, Condition(*key, each.main, claimed, images))
                digests.setdefault(key, set()).add(each.digest)
        for (name, _), kinds in digests.items():
            if len(kinds) > 1:
                raise InputError(f"--test-set: workers scored different images as {name}; give all of them the same")
        return list(found.values())

    def table(self, configuration: int, key: Key, seeds: Sequence[int]) -> Table:
        rows = []
        for seed in seeds:
            outcome = self.by_key[configuration, seed][key]
            right = [outcome.value] if outcome.right is None else outcome.right
            rows.append(np.asarray(right, dtype=np.float64))
        return np.stack(rows)

    def scores(self, configuration: int, seeds: Sequence[int]) -> Table:
        return np.array([[self.runs[configuration, seed].score] for seed in seeds])


def read_confirmed(engine: sa.Engine, search: Study, confirmed: Study, trials: Sequence[int]) -> Confirmed | None:
    """What is known so far of these candidates; None before each of their configurations has a complete run."""
    confirmation = confirmed.confirmation
    if confirmation is None:
        raise AssertionError(confirmed.name)
    runs = read_outcomes(engine, confirmed.study_id)
    tables = _Tables(runs, search.spec)
    candidates = tuple(each for trial in trials for each in confirmation.candidates if each.trial == trial)
    needed = [0, *(place for each in candidates for place in (each.configuration, each.control) if place is not None)]
    if not candidates or not tables.seeds(*needed):
        return None
    conditions = tables.conditions()
    differences = _differences(tables, candidates, conditions)
    results = []
    for role, trial, place in _roles(confirmation, candidates):
        seeds = tables.seeds(place)
        for condition in conditions:
            known = differences.get((role, trial, condition.key), (None, None))
            results.append(_result(tables, role, trial, place, condition, seeds, *known))
    wanted = {(run.configuration, run.seed) for run in confirmation.runs if run.configuration in needed}
    return Confirmed(
        search,
        confirmation,
        candidates,
        tuple(results),
        len(wanted - tables.runs.keys()),
        {each.trial: _gain(tables, each.configuration) for each in candidates},
        {
            place: tables.runs[first].number
            for place in needed
            if (first := (place, confirmation.seeds_of(place)[0])) in tables.runs
        },
        _promised(engine, search, confirmation.configurations[0].trial, candidates),
    )


def _promised(engine: sa.Engine, search: Study, baseline: int, candidates: Sequence[Candidate]) -> dict[int, float]:
    scores = {each.number: each.score for each in trials_in(engine, search.name, ["COMPLETE"])}
    of_baseline = scores.get(baseline)
    found = {each.trial: scores.get(each.trial) for each in candidates}
    if of_baseline is None:
        return {}
    return {trial: score - of_baseline for trial, score in found.items() if score is not None}


def _roles(confirmation: Confirmation, candidates: Sequence[Candidate]) -> Iterator[tuple[Role, int, int]]:
    yield "baseline", confirmation.configurations[0].trial, 0
    for candidate in candidates:
        if candidate.control and has_control(candidate):
            yield "control", candidate.trial, candidate.control
        yield "candidate", candidate.trial, candidate.configuration


def has_control(candidate: Candidate) -> bool:
    """Whether its control is a configuration of its own, rather than the baseline or itself."""
    return candidate.control not in (None, 0, candidate.configuration)


def _result(
    tables: _Tables,
    role: Role,
    trial: int,
    place: int,
    condition: Condition,
    seeds: Sequence[int],
    to_baseline: Difference | None,
    to_control: Difference | None,
) -> Result:
    table = tables.table(place, condition.key, seeds)
    correct = None if condition.images is None else tuple(int(count) for count in table.sum(axis=1))
    within = (0.0, 1.0) if condition.images is not None else (-np.inf, np.inf)
    accuracy = interval(table, within)
    return Result(role, trial, condition, tuple(seeds), correct, accuracy, to_baseline, to_control)


Known = dict[tuple[Role, int, Key], tuple[Difference | None, Difference | None]]


def _differences(tables: _Tables, candidates: Sequence[Candidate], conditions: Sequence[Condition]) -> Known:
    """To the baseline and to the control, of candidates; of controls, to the baseline, of which nothing is claimed."""
    found: Known = {}
    worst = {condition.key: 0.0 for condition in conditions if condition.claimed}
    for candidate in candidates:
        own, control = candidate.configuration, candidate.control
        to_baseline = _claimed(tables, own, 0, conditions, worst)
        is_controlled = control is not None and has_control(candidate)
        to_control = _claimed(tables, own, control, conditions, worst) if control and is_controlled else {}
        for condition in conditions:
            key = condition.key
            found["candidate", candidate.trial, key] = to_baseline[key], to_control.get(key)
            if control and is_controlled:
                found["control", candidate.trial, key] = _difference(tables, control, 0, condition), None
    return found


def _claimed(
    tables: _Tables, own: int, other: int, conditions: Sequence[Condition], worst: dict[Key, float]
) -> dict[Key, Difference]:
    """The differences of two configurations, those that may be claimed with corrected p-values. worst: the largest
    p-value so far under each of them, which is updated.
    """
    found = {condition.key: _difference(tables, own, other, condition) for condition in conditions}
    worst |= {key: max(so_far, p_value(found[key].table)) for key, so_far in worst.items()}
    corrected = dict(zip(worst, holm(list(worst.values())), strict=True))
    return {key: Difference(each.interval, corrected.get(key), each.table) for key, each in found.items()}


def _difference(tables: _Tables, own: int, other: int, condition: Condition) -> Difference:
    seeds = tables.seeds(own, other)
    table = tables.table(own, condition.key, seeds) - tables.table(other, condition.key, seeds)
    within = (-1.0, 1.0) if condition.images is not None else (-np.inf, np.inf)
    return Difference(interval(table, within), None, table)


def _gain(tables: _Tables, configuration: int) -> Interval:
    seeds = tables.seeds(configuration, 0)
    return interval(tables.scores(configuration, seeds) - tables.scores(0, seeds), (-np.inf, np.inf))
