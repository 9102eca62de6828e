"""Reads the database with SQL: best configurations, counts, trials as they end. Starts without Optuna."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hpo.parameters import SearchSpec
from hpo.search.budget import count_in
from hpo.search.study import Study, latest_failures
from hpo.search.tables import studies, trial_results, trial_user_attributes, trials

FAILURES_SHOWN = 5
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
            record[key] = time.isoformat(timespec="seconds") + "Z" if time else None
        return record


def best_trials(engine: sa.Engine, study: str, most: int) -> list[TrialResult]:
    """The complete trials with the highest scores: feasible ones first, then the least infeasible; ties to the
    earlier one.
    """
    t = trial_results
    infeasible_by = sa.case((t.c.feasible == 1, 0), else_=-t.c.clean_accuracy)
    query = (
        sa.select(t)
        .where(t.c.study == study, t.c.state == "COMPLETE", t.c.score.is_not(None))
        .order_by(t.c.feasible.desc(), infeasible_by, t.c.score.desc(), t.c.number)
        .limit(most)
    )
    return _read(engine, query)


def baseline_trial(engine: sa.Engine, study: str) -> TrialResult | None:
    """The study's baseline if it is complete."""
    t = trial_results
    found = _read(engine, sa.select(t).where(t.c.study == study, t.c.baseline == 1, t.c.state == "COMPLETE"))
    return found[0] if found else None


def trials_in(engine: sa.Engine, study: str, states: Sequence[str]) -> list[TrialResult]:
    """The trials in these states, in the order in which they ended."""
    t = trial_results
    query = sa.select(t).where(t.c.study == study, t.c.state.in_(states)).order_by(t.c.finished_at, t.c.number)
    return _read(engine, query)


def status(engine: sa.Engine, study: Study) -> dict[str, Any]:
    """What `hpo status --json` prints: counts, why the study is stopped (or None), and its latest failures."""
    with engine.connect() as connection:
        counts = count_in(connection, study.study_id)
        failures = latest_failures(connection, study, FAILURES_SHOWN)
    return {
        "study": study.name,
        "budget": study.budget,
        "finished": counts.finished,
        **asdict(counts),
        "stopped": study.stopped,
        "failures": [{"number": number, "traceback": text} for number, text in reversed(failures)],
    }


def _read(engine: sa.Engine, query: sa.Select[Any]) -> list[TrialResult]:
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
        details = _details(connection, rows)
    return [_result(row, details.get((row["study"], row["number"]), {})) for row in rows]


def _details(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The attributes that are not in the views, by (study, trial number)."""
    a = trial_user_attributes
    query = (
        sa.select(studies.c.study_name, trials.c.number, a.c.key, a.c.value_json)
        .join(trials, trials.c.trial_id == a.c.trial_id)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(a.c.key.in_(DETAILS), studies.c.study_name.in_({row["study"] for row in rows}))
        .where(trials.c.number.in_([row["number"] for row in rows]))
    )
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for study, number, key, value_json in connection.execute(query) if rows else ():
        found.setdefault((study, number), {})[key] = json.loads(value_json)
    return found


def _result(row: dict[str, Any], details: dict[str, Any]) -> TrialResult:
    return TrialResult(
        study=row["study"],
        number=row["number"],
        state=row["state"].lower(),
        baseline=bool(row["baseline"]),
        feasible=bool(row["feasible"]),
        score=row["score"],
        clean_accuracy=row["clean_accuracy"],
        perturbed_accuracy=details.get("perturbed_accuracy", {}),
        params=_in_order(json.loads(row["params"])) if row["params"] else {},
        correct=details.get("correct", {}),
        images=details.get("images"),
        epochs=details.get("epochs", []),
        clean_drop=details.get("clean_drop"),
        worker=row["worker"],
        started_at=_time(row["started_at"]),
        finished_at=_time(row["finished_at"]),
        made_by=details.get("made_by", {}),
        failure=details.get("failure"),
        interruption=details.get("interruption"),
        out_of_memory=details.get("out_of_memory"),
        continues=details.get("continues", []),
        resumed_after_epoch=details.get("resumed_after_epoch"),
    )


def _in_order(params: dict[str, Any]) -> dict[str, Any]:
    """As in a study file; SQL gives them in an order of its own."""
    return {name: params[name] for name in [*SearchSpec.model_fields, *sorted(params)] if name in params}


def _time(value: Any) -> datetime | None:
    """SQLite's view gives text where PostgreSQL's gives a timestamp; both are UTC without saying so."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value
