"""Queries for trials: the best, all, those that ended, the Pareto front. Does not import Optuna."""

import contextlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from hpo.search.sql.attributes import read_all_params
from hpo.search.sql.conditions import is_paused
from hpo.search.sql.filters import FIELDS, Field, Fields, names_state, parse_sort, parse_where
from hpo.search.sql.old_attributes import parts_of, reports_of
from hpo.search.sql.tables import studies, trial_user_attributes, trials
from hpo.search.sql.views import trial_results
from hpo.trial_result import TrialResult, as_column

T = TypeVar("T")

CHUNK = 500  # numbers per statement


def best_trials(engine: sa.Engine, study: str, limit: int, where: str = "", sort: str = "score") -> list[TrialResult]:
    """The best complete trials by score, or by another field given as for `--sort`. Feasible trials come first; sorted
    by score, the others follow with the least infeasible first. Ties go to the earlier trial. If `where` uses the
    state, trials that are not complete are included.

    Raises InputError if `where` or `sort` cannot be parsed.
    """
    t = trial_results
    allowed = fields_of(engine, study) if where or sort != "score" else FIELDS
    condition = parse_where(where, allowed) if where else sa.true()
    by, ascending = parse_sort(sort, allowed)
    infeasible_by = [sa.case((t.c.feasible, 0), else_=t.c.violation)] if sort == "score" else []
    query = (
        sa.select(t.c.number)
        .where(t.c.study == study, condition)
        .order_by(t.c.feasible.desc(), *infeasible_by, _nulls_last(by.column, ascending), t.c.number)
        .limit(limit)
    )
    if not where or not names_state(where):
        query = query.where(t.c.state == "complete", t.c.score.is_not(None))
    return _read(engine, study, query)


def fields_of(engine: sa.Engine, study: str) -> Fields:
    """Fields for `--where`: the columns, and the study's parts of the score and parameters that have no column."""
    t = trial_results
    query = sa.select(t.c.accuracies, t.c.params).where(t.c.study == study, t.c.accuracies.is_not(None)).limit(1)
    row = None
    with (
        contextlib.suppress(sa.exc.DBAPIError),
        engine.connect() as connection,
    ):  # older views, which a reader cannot replace
        row = connection.execute(query).first()
    fields = dict(FIELDS)
    for column, text in zip((t.c.accuracies, t.c.params), row or (), strict=bool(row)):
        for name, value in json.loads(text or "{}").items():
            if as_column(name).isidentifier():
                fields.setdefault(as_column(name), _in_json(engine, column, name, value))
    return fields


def _in_json(engine: sa.Engine, column: sa.ColumnElement[Any], name: str, value: Any) -> Field:
    is_text = isinstance(value, str)
    if engine.dialect.name == "postgresql":
        found = sa.cast(column, sa.JSON)[name]
        return Field("text", found.as_string()) if is_text else Field("number", found.as_float())
    return Field("text" if is_text else "number", sa.func.json_extract(column, f'$."{name}"'))


def all_trials(engine: sa.Engine, study: str, where: str = "") -> list[TrialResult]:
    """The trials of a study in any state, by number. Raises InputError if `where` cannot be parsed."""
    condition = parse_where(where, fields_of(engine, study)) if where else sa.true()
    t = trial_results
    return _read(engine, study, sa.select(t.c.number).where(t.c.study == study, condition).order_by(t.c.number))


def _nulls_last(column: sa.ColumnElement[Any], ascending: bool) -> sa.ColumnElement[Any]:
    """Sorts missing values last, which SQLite and PostgreSQL place differently by default."""
    return (column.asc() if ascending else column.desc()).nulls_last()


def baseline_trial(engine: sa.Engine, study: str) -> TrialResult | None:
    """The study's baseline; None if it is not complete."""
    t = trial_results
    query = sa.select(t.c.number).where(t.c.study == study, t.c.baseline, t.c.state == "complete")
    found = _read(engine, study, query)
    return found[0] if found else None


def trials_in(engine: sa.Engine, study: str, states: Sequence[str], exclude: Collection[int] = ()) -> list[TrialResult]:
    """The trials in these states, in the order they ended. exclude: numbers to leave out."""
    query = (
        sa.select(trials.c.number)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == study, trials.c.state.in_(states))
        .order_by(_nulls_last(trials.c.datetime_complete, ascending=True), trials.c.number)
    )
    return _read(engine, study, query, exclude)


def paused_trials(engine: sa.Engine, study: str, exclude: Collection[int] = ()) -> list[TrialResult]:
    """The paused trials, by number."""
    query = (
        sa.select(trials.c.number)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == study, is_paused())
        .order_by(trials.c.number)
    )
    return _read(engine, study, query, exclude)


def pareto_front(engine: sa.Engine, study: str, trade_off: Sequence[str] | None) -> list[TrialResult]:
    """The complete trials that no other dominates in these fields, by descending first field.

    trade_off: names of fields; None for all parts of the study's score.
    """
    t = trial_results
    fields = fields_of(engine, study)
    complete = sa.and_(t.c.study == study, t.c.state == "complete")
    with engine.connect() as connection:
        if trade_off is None:
            text = connection.scalar(sa.select(t.c.accuracies).where(complete, t.c.accuracies.is_not(None)).limit(1))
            trade_off = [as_column(name) for name in json.loads(text or "{}")]
        columns = [fields[name].column for name in trade_off if name in fields]
        query = sa.select(t.c.number, *columns).where(complete, *(column.is_not(None) for column in columns))
        points = connection.execute(query.order_by(t.c.number)).all() if columns else []
    return _read_numbers(engine, study, front([(point[0], tuple(point[1:])) for point in points]))


def front(points: Iterable[tuple[T, tuple[float, ...]]]) -> list[T]:
    """The items of (item, values) that no other dominates, by descending first value; of equal ones the first."""
    found: list[tuple[T, tuple[float, ...]]] = []
    for what, values in sorted(points, key=lambda point: tuple(-value for value in point[1])):
        if not any(all(a >= b for a, b in zip(other, values, strict=True)) for _, other in found):
            found.append((what, values))
    return [what for what, _ in found]


def improvements(engine: sa.Engine, study: str) -> list[TrialResult]:
    """The feasible complete trials that were better than all before them, in the order they ended."""
    t = trial_results
    feasible = (
        sa.select(t.c.number, t.c.score, t.c.finished_at)
        .where(t.c.study == study, t.c.state == "complete", t.c.feasible, t.c.score.is_not(None))
        .subquery()
    )
    order = (feasible.c.finished_at, feasible.c.number)
    before = sa.func.max(feasible.c.score).over(order_by=order, rows=(None, -1))
    ranked = sa.select(feasible, before.label("before")).subquery()
    query = (
        sa.select(ranked.c.number)
        .where(sa.or_(ranked.c.before.is_(None), ranked.c.score > ranked.c.before))
        .order_by(ranked.c.finished_at, ranked.c.number)
    )
    return _read(engine, study, query)


def began_at(engine: sa.Engine, study: str) -> datetime | None:
    """When the study's first trial started."""
    t = trials.c
    query = (
        sa.select(sa.func.min(t.datetime_start))
        .join(studies, studies.c.study_id == t.study_id)
        .where(studies.c.study_name == study)
    )
    with engine.connect() as connection:
        found: datetime | None = connection.scalar(query)
    return found


def _read(engine: sa.Engine, study: str, numbers: sa.Select[Any], exclude: Collection[int] = ()) -> list[TrialResult]:
    """The trials whose numbers a query selects, in its order. Other columns are read for these trials only."""
    with engine.connect() as connection:
        found = [number for number in connection.execute(numbers).scalars() if number not in exclude]
    return _read_numbers(engine, study, found)


SHOWN = (
    *("study", "number", "state", "baseline", "feasible", "score", "violation", "worker", "started_at", "finished_at"),
)


def _read_numbers(engine: sa.Engine, study: str, numbers: Sequence[int]) -> list[TrialResult]:
    found: dict[int, TrialResult] = {}
    columns = [trial_results.c[name] for name in SHOWN]
    with engine.connect() as connection:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            query = sa.select(*columns).where(trial_results.c.study == study, trial_results.c.number.in_(chunk))
            rows = connection.execute(query).mappings().all()
            ids = _ids(connection, study, chunk)
            params, kept = read_all_params(connection, list(ids)), _attributes(connection, list(ids))
            by_number = {number: (params.get(trial_id, {}), kept.get(trial_id, {})) for trial_id, number in ids.items()}
            found |= {row["number"]: _result(row, *by_number.get(row["number"], ({}, {}))) for row in rows}
    return [found[number] for number in numbers if number in found]  # some may have been deleted in the meantime


def _ids(connection: sa.Connection, study: str, numbers: Sequence[int]) -> dict[int, int]:
    """The trials' numbers by trial_id."""
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == study, trials.c.number.in_(numbers))
    )
    return {row.trial_id: row.number for row in connection.execute(query)}


def _attributes(connection: sa.Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The user attributes of these trials."""
    a = trial_user_attributes.c
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in connection.execute(
        sa.select(a.trial_id, a.key, a.value_json).where(a.trial_id.in_(ids))
    ):
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found


def _result(row: Any, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> TrialResult:
    parts = {name: value for name, value in parts_of(attributes).items() if value is not None}
    return TrialResult(**row, parts=parts, params=params, reports=reports_of(attributes), attributes=attributes)
