"""The trials of a study for samplers, kept in memory and updated with few queries.

Optuna's own storage would reread every open trial each time, and open a transaction for each parameter. Samplers only
read trials and set system attributes of the current one, so they get an Optuna study over these trials in memory, and
the worker writes what they drew.
"""

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from copy import copy
from datetime import datetime
from functools import lru_cache
from statistics import median
from typing import Any

import sqlalchemy as sa
from optuna import Study as OptunaStudy
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, json_to_distribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.sql.conditions import baseline_is_complete, excluded_trials, is_paused
from hpo.search.sql.tables import (
    CONSTRAINT_PREFIX,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

CHUNK = 5000  # ids per statement, which SQLite limits to a million characters
INFINITY = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


class History:
    """The finished, running and paused trials of one study.

    When the baseline completes, trials that ended before it may get a constraint, so all are read again.
    """

    def __init__(self, engine: sa.Engine, study_id: int, name: str) -> None:
        self._engine = engine
        self._id = study_id
        self._name = name
        self._finished: dict[int, FrozenTrial] = {}
        self._all_below_are_final = 0
        self._baseline_seen = False
        self._excluded: set[int] = set()

    def study(self, current: FrozenTrial | None = None) -> OptunaStudy:
        """The current state of the trials, by number, without the current trial."""
        open_trials = self._read(current._trial_id if current else None)
        known = [*self._finished.values(), *open_trials]
        seen = sorted((trial for trial in known if trial.number not in self._excluded), key=lambda trial: trial.number)
        return _study(self._name, seen, current)

    def _read(self, current_id: int | None) -> list[FrozenTrial]:
        """Reads the trials that started or ended since the last call, and returns those that are not finished."""
        with self._engine.connect() as connection:
            first_open = connection.scalar(
                sa.select(sa.func.min(trials.c.trial_id)).where(
                    trials.c.study_id == self._id,
                    trials.c.trial_id >= self._all_below_are_final,
                    trials.c.state.in_(["WAITING", "RUNNING"]),
                )
            )
            self._forget_unconstrained(connection)
            self._excluded = excluded_trials(connection, self._id)  # which may change at any time
            rows = connection.execute(
                sa.select(trials).where(
                    trials.c.study_id == self._id,
                    trials.c.trial_id >= self._all_below_are_final,
                    trials.c.state.in_(["COMPLETE", "PRUNED", "RUNNING"]) | is_paused(),
                )
            ).all()
            new = [row for row in rows if row.trial_id not in self._finished and row.trial_id != current_id]
            read = list(read_trials(connection, new))
        self._finished |= {trial._trial_id: trial for trial in read if trial.state.is_finished()}
        if first_open is not None:
            self._all_below_are_final = first_open
        open_trials = [trial for trial in read if not trial.state.is_finished()]
        for trial in open_trials:
            if trial.state == TrialState.WAITING:
                trial.state = TrialState.PRUNED  # samplers learn as much from a paused trial as from a pruned one
        return open_trials

    def _forget_unconstrained(self, connection: sa.Connection) -> None:
        if not self._baseline_seen and connection.scalar(sa.select(baseline_is_complete(self._id))):
            self._baseline_seen = True
            self._finished.clear()
            self._all_below_are_final = 0


class _Snapshot(InMemoryStorage):
    """Holds these trials, and lets samplers set system attributes of the current one."""

    def __init__(self, name: str, shown: Sequence[FrozenTrial], current: FrozenTrial | None) -> None:
        super().__init__()
        self.shown = shown
        self.current = current
        self.create_new_study([StudyDirection.MAXIMIZE], name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.shown if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if self.current is None or self.current._trial_id != trial_id:
            raise ValueError(f"trial_id {trial_id} is not the current trial")
        self.current.system_attrs[key] = value


def _study(name: str, shown: Sequence[FrozenTrial], current: FrozenTrial | None) -> OptunaStudy:
    return OptunaStudy(study_name=name, storage=_Snapshot(name, shown, current), sampler=RandomSampler())


def with_estimates(study: OptunaStudy, current: FrozenTrial) -> OptunaStudy:
    """The study as shown to samplers, some of which learn only from complete trials. Pruned and paused trials become
    complete, with an estimated final score: that of their last step plus the median gain of complete trials after that
    step. In a constrained study, complete trials without a known constraint get 0, the limit of feasibility. Trials
    outside the search space, as the baseline may be, are left out.
    """
    seen = study.get_trials(deepcopy=False)
    gains: dict[int, list[float]] = defaultdict(list)
    for trial in seen:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            for step, score in trial.intermediate_values.items():
                gains[step].append(trial.value - score)
    typical_gain = {step: median(gained) for step, gained in gains.items()}
    notes = dict.fromkeys(
        (key for trial in seen for key in trial.system_attrs if key.startswith(CONSTRAINT_PREFIX)), 0.0
    )
    shown = []
    for trial in map(copy, (trial for trial in seen if _is_within(trial, current))):
        step = max(trial.intermediate_values, default=0)
        if trial.state == TrialState.PRUNED and step in typical_gain:
            trial.state = TrialState.COMPLETE
            trial.value = trial.intermediate_values[step] + typical_gain[step]
        if trial.state == TrialState.COMPLETE:
            trial.system_attrs = notes | trial.system_attrs
        shown.append(trial)
    return _study(study.study_name, shown, current)


def _is_within(trial: FrozenTrial, current: FrozenTrial) -> bool:
    """Whether the trial's parameters lie within the current trial's distributions."""
    return all(
        distribution.single() or name not in trial.params or distribution.low <= trial.params[name] <= distribution.high
        for name, distribution in current.distributions.items()
        if isinstance(distribution, FloatDistribution | IntDistribution)
    )


def read_trials(connection: sa.Connection, rows: Sequence[Any], whole: bool = False) -> Iterable[FrozenTrial]:
    """The trials of these rows of `trials`. whole: with all attributes, not only those that samplers need."""
    ids = [row.trial_id for row in rows]
    params: dict[int, dict[str, Any]] = {i: {} for i in ids}
    distributions: dict[int, dict[str, BaseDistribution]] = {i: {} for i in ids}
    for trial_id, name, value, text in _related(
        connection, trial_params, ids, "param_name", "param_value", "distribution_json"
    ):
        distribution = _distribution(text)
        params[trial_id][name] = distribution.to_external_repr(value)
        distributions[trial_id][name] = distribution
    values: dict[int, dict[int, float]] = {i: {} for i in ids}
    for trial_id, objective, value, kind in _related(connection, trial_values, ids, "objective", "value", "value_type"):
        values[trial_id][objective] = INFINITY.get(kind, value)
    steps: dict[int, dict[int, float]] = {i: {} for i in ids}
    for trial_id, step, value, kind in _related(
        connection, trial_intermediate_values, ids, "step", "intermediate_value", "intermediate_value_type"
    ):
        steps[trial_id][step] = INFINITY.get(kind, value)
    notes: dict[int, dict[str, Any]] = {i: {} for i in ids}
    for trial_id, key, text in _related(connection, trial_system_attributes, ids, "key", "value_json"):
        if whole or key.startswith(CONSTRAINT_PREFIX):
            notes[trial_id][key] = json.loads(text)
    attributes: dict[int, dict[str, Any]] = {i: {} for i in ids}
    for trial_id, key, text in _related(connection, trial_user_attributes, ids if whole else (), "key", "value_json"):
        attributes[trial_id][key] = json.loads(text)
    for row in rows:
        i = row.trial_id
        scores = [value for _, value in sorted(values[i].items())] or None
        yield _frozen(row, params[i], distributions[i], scores, steps[i], attributes[i], notes[i])


def _related(connection: sa.Connection, table: sa.Table, ids: Sequence[int], *columns: str) -> Iterable[Any]:
    for start in range(0, len(ids), CHUNK):
        # literals, since psycopg takes as long to bind so many parameters as to read the rows
        chosen = sa.bindparam(None, ids[start : start + CHUNK], sa.Integer, expanding=True, literal_execute=True)
        query = sa.select(table.c.trial_id, *(table.c[name] for name in columns))
        yield from connection.execute(
            query.where(table.c.trial_id.in_(chosen))
        ).all()  # iterating row by row takes twice as long


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _frozen(
    row: Any,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    values: list[float] | None,
    steps: dict[int, float],
    attributes: dict[str, Any],
    notes: dict[str, Any],
) -> FrozenTrial:
    return FrozenTrial(
        number=row.number,
        state=TrialState[row.state],
        value=None,
        values=values,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        system_attrs=notes,
        intermediate_values=steps,
        trial_id=row.trial_id,
    )


def starting_trial(trial_id: int, number: int, started_at: datetime) -> FrozenTrial:
    """The current trial before it has parameters."""
    return FrozenTrial(number, TrialState.RUNNING, None, started_at, None, {}, {}, {}, {}, {}, trial_id)
