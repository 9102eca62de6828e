"""Reads the database with SQL: best configurations, counts, trials as they end. Starts without Optuna."""

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from hpo.doors.parameters import PARAMETERS
from hpo.search.sql.conditions import is_paused
from hpo.search.sql.filters import FIELDS, Field, Fields, names_state, parse_sort, parse_where
from hpo.search.sql.tables import studies, trial_user_attributes, trials
from hpo.search.sql.views import trial_results

T = TypeVar("T")

CHUNK = 500  # numbers in one statement
DETAILS = (
    "perturbed_accuracy",
    "correct",
    "images",
    "epochs",
    "made_by",
    "clean_drop",
    "failure",
    "interruption",
    "out_of_memory",
    "continues",
    "resumed_after_epoch",
)


@dataclass(frozen=True)
class TrialResult:
    """One trial as it is shown. Accuracies and score are 0 to 1, on `images` tuning images; None where not measured."""

    study: str
    number: int
    state: str
    baseline: bool
    feasible: bool
    score: float | None
    clean_accuracy: float | None
    perturbed_accuracy: dict[str, float]
    params: dict[str, Any]
    correct: dict[str, int]
    images: int | None
    epochs: list[dict[str, float]]
    clean_drop: float | None
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    made_by: dict[str, Any]
    failure: str | None
    interruption: str | None
    out_of_memory: str | None
    continues: list[int]
    resumed_after_epoch: int | None

    def as_json(self) -> dict[str, Any]:
        """For --json; times in ISO 8601, UTC."""
        record = asdict(self)
        for key in ("started_at", "finished_at"):
            time = record[key]
            record[key] = in_iso_8601(time)
        return record

    def as_row(self) -> dict[str, Any]:
        """For --csv and pandas: a flat row, a column for each accuracy and each parameter."""
        return {
            "study": self.study,
            "number": self.number,
            "state": self.state,
            "baseline": self.baseline,
            "feasible": self.feasible,
            "score": self.score,
            "clean_accuracy": self.clean_accuracy,
            **{as_column(name): value for name, value in self.perturbed_accuracy.items()},
            **self.params,
            "images": self.images,
            "worker": self.worker,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
        }


def as_column(name: str) -> str:
    """What the accuracy under a perturbation is called where a hyphen cannot stand."""
    return name.replace("-", "_")


def in_iso_8601(time: datetime | None) -> str | None:
    """A time of the database, which is in UTC without saying so."""
    return time.isoformat(timespec="seconds") + "Z" if time else None


def best_trials(engine: sa.Engine, study: str, most: int, where: str = "", sort: str = "score") -> list[TrialResult]:
    """The complete trials with the highest scores, or other values, as `--sort` says: feasible ones first, then the
    others, the least infeasible first unless they are sorted otherwise; ties to the earlier one. A `where` that names
    the state looks at all trials.

    Raises InputError if `where` or `sort` cannot be read.
    """
    t = trial_results
    allowed = _fields(engine, study) if where or sort != "score" else FIELDS
    condition = parse_where(where, allowed) if where else sa.true()
    by, ascending = parse_sort(sort, allowed)
    infeasible_by = [sa.case((t.c.feasible, 0), else_=-t.c.clean_accuracy)] if sort == "score" else []
    query = (
        sa.select(t.c.number)
        .where(t.c.study == study, condition)
        .order_by(t.c.feasible.desc(), *infeasible_by, _nulls_last(by.column, ascending), t.c.number)
        .limit(most)
    )
    if not where or not names_state(where):
        query = query.where(t.c.state == "complete", t.c.score.is_not(None))
    return _read(engine, study, query)


def _fields(engine: sa.Engine, study: str) -> Fields:
    """What `--where` may name: the columns, and accuracies and parameters of the study that have none."""
    t = trial_results
    query = sa.select(t.c.accuracies, t.c.params).where(t.c.study == study, t.c.accuracies.is_not(None)).limit(1)
    row = None
    with (
        contextlib.suppress(sa.exc.DBAPIError),
        engine.connect() as connection,
    ):  # older views, which a reader cannot mend
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
    """The trials of a study, in whatever state, by number. Raises InputError if `where` cannot be read."""
    condition = parse_where(where, _fields(engine, study)) if where else sa.true()
    t = trial_results
    return _read(engine, study, sa.select(t.c.number).where(t.c.study == study, condition).order_by(t.c.number))


def _nulls_last(column: sa.ColumnElement[Any], ascending: bool) -> sa.ColumnElement[Any]:
    """SQLite and PostgreSQL sort what is missing to different ends."""
    return (column.asc() if ascending else column.desc()).nulls_last()


def baseline_trial(engine: sa.Engine, study: str) -> TrialResult | None:
    """The study's baseline if it is complete."""
    t = trial_results
    query = sa.select(t.c.number).where(t.c.study == study, t.c.baseline, t.c.state == "complete")
    found = _read(engine, study, query)
    return found[0] if found else None


def trials_in(engine: sa.Engine, study: str, states: Sequence[str], but: Collection[int] = ()) -> list[TrialResult]:
    """The trials in these states, in the order in which they ended; but: numbers to leave out."""
    query = (
        sa.select(trials.c.number)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == study, trials.c.state.in_(states))
        .order_by(_nulls_last(trials.c.datetime_complete, ascending=True), trials.c.number)
    )
    return _read(engine, study, query, but)


def paused_trials(engine: sa.Engine, study: str, but: Collection[int] = ()) -> list[TrialResult]:
    """The trials that ASHA has paused, in the order of their numbers."""
    query = (
        sa.select(trials.c.number)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == study, is_paused())
        .order_by(trials.c.number)
    )
    return _read(engine, study, query, but)


def pareto_front(engine: sa.Engine, study: str) -> list[TrialResult]:
    """The complete trials that no other beats in both clean and perturbed accuracy, by descending clean accuracy."""
    t = trial_results
    query = (
        sa.select(t.c.number, t.c.clean_accuracy, t.c.perturbed_accuracy)
        .where(t.c.study == study, t.c.state == "complete")
        .where(t.c.clean_accuracy.is_not(None), t.c.perturbed_accuracy.is_not(None))
        .order_by(t.c.number)
    )
    with engine.connect() as connection:
        points = connection.execute(query).all()
    return _read_numbers(engine, study, front([tuple(row) for row in points]))


def front(points: Iterable[tuple[T, float, float]]) -> list[T]:
    """What no other beats in both clean and perturbed accuracy, of (what, clean, perturbed): by descending clean
    accuracy, of equals the first.
    """
    found, highest = [], -math.inf
    for what, _, perturbed in sorted(points, key=lambda point: (-point[1], -point[2])):
        if perturbed > highest:
            highest = perturbed
            found.append(what)
    return found


def improvements(engine: sa.Engine, study: str) -> list[TrialResult]:
    """The feasible complete trials that were better than all before them, in the order in which they ended."""
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


def _read(engine: sa.Engine, study: str, numbers: sa.Select[Any], but: Collection[int] = ()) -> list[TrialResult]:
    """The trials that a query finds by number, in its order: whatever else is known of them is read for these alone."""
    with engine.connect() as connection:
        found = [number for number in connection.execute(numbers).scalars() if number not in but]
    return _read_numbers(engine, study, found)


def _read_numbers(engine: sa.Engine, study: str, numbers: Sequence[int]) -> list[TrialResult]:
    found: dict[int, TrialResult] = {}
    with engine.connect() as connection:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            query = sa.select(trial_results).where(trial_results.c.study == study, trial_results.c.number.in_(chunk))
            rows = [dict(row) for row in connection.execute(query).mappings()]
            details = _details(connection, study, chunk)
            found |= {row["number"]: _result(row, details.get(row["number"], {})) for row in rows}
    return [found[number] for number in numbers if number in found]  # some were deleted meanwhile


def _details(connection: sa.Connection, study: str, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The attributes that are not in the views, by trial number."""
    a = trial_user_attributes
    query = (
        sa.select(trials.c.number, a.c.key, a.c.value_json)
        .join(trials, trials.c.trial_id == a.c.trial_id)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(a.c.key.in_(DETAILS), studies.c.study_name == study, trials.c.number.in_(numbers))
    )
    found: dict[int, dict[str, Any]] = {}
    for number, key, value_json in connection.execute(query):
        found.setdefault(number, {})[key] = json.loads(value_json)
    return found


def _result(row: dict[str, Any], details: dict[str, Any]) -> TrialResult:
    return TrialResult(
        study=row["study"],
        number=row["number"],
        state=row["state"],
        baseline=row["baseline"],
        feasible=row["feasible"],
        score=row["score"],
        clean_accuracy=row["clean_accuracy"],
        perturbed_accuracy=details.get("perturbed_accuracy", {}),
        params=_in_order(json.loads(row["params"])) if row["params"] else {},
        correct=details.get("correct", {}),
        images=details.get("images"),
        epochs=details.get("epochs", []),
        clean_drop=details.get("clean_drop"),
        worker=row["worker"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        made_by=details.get("made_by", {}),
        failure=details.get("failure"),
        interruption=details.get("interruption"),
        out_of_memory=details.get("out_of_memory"),
        continues=details.get("continues", []),
        resumed_after_epoch=details.get("resumed_after_epoch"),
    )


def _in_order(params: dict[str, Any]) -> dict[str, Any]:
    """As in a study file; SQL gives them in an order of its own."""
    return {name: params[name] for name in [*PARAMETERS, *sorted(params)] if name in params}
