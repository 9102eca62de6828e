"""What monitoring asks of the dashboard: `/metrics` for Prometheus, `/healthz` and `/readyz` for supervisors."""

from collections.abc import Iterator
from dataclasses import asdict

import sqlalchemy as sa
from bottle import Bottle, response
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import HpoError
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.counts import Counts, count_all
from hpo.search.sql.queries import best_trials
from hpo.search.sql.status import progress, speed
from hpo.search.sql.studies import Study, find_studies

HEALTHY, READY = "/healthz", "/readyz"


class Studies(Collector):
    """Reads the database at each scrape; studies in which nothing ended since the last one cost a count."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._best: dict[StudyKey, tuple[int, float | None]] = {}

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Raises HpoError, SQLAlchemyError."""
        trials = GaugeMetricFamily("hpo_trials", "Trials of a study by state", labels=["study", "state"])
        families = {
            name: GaugeMetricFamily(f"hpo_{name}", help_text, labels=["study"])
            for name, help_text in {
                "budget_trials": "Trials that a study is to finish",
                "stopped": "1 if a study is stopped, else 0",
                "best_score": "Score of the best feasible trial",
                "workers": "Workers that run a trial of a study",
                "heartbeat_age_seconds": "Time since the oldest of the last heartbeats of running trials",
                "images_per_second": "Training speed of the running trials, in all, in their last epochs",
            }.items()
        }
        with self._engine.connect() as connection:
            counts = count_all(connection)
        for study in find_studies(self._engine):
            known = counts.get(study.study_id, Counts())
            for state, number in asdict(known).items():
                trials.add_metric([study.name, state], number)
            values: dict[str, float] = {"budget_trials": study.budget, "stopped": float(study.stopped is not None)}
            if study.confirmation is None and (best := self._best_score(study, known)) is not None:
                values["best_score"] = best
            running = progress(self._engine, study)[1] if known.running else []
            values["workers"] = len({trial.worker for trial in running})
            if ages := [trial.secs_since_heartbeat for trial in running if trial.secs_since_heartbeat is not None]:
                values["heartbeat_age_seconds"] = max(ages)
            values["images_per_second"] = speed(self._engine, study) if running else 0.0
            for name, value in values.items():
                families[name].add_metric([study.name], value)
        yield trials
        yield from families.values()

    def _best_score(self, study: Study, counts: Counts) -> float | None:
        """Of a feasible trial; read anew when another one is complete."""
        seen, score = self._best.get(study.key, (0, None))
        if counts.complete != seen:
            found = best_trials(self._engine, study.name, 1, "feasible = true")
            score = found[0].score if found else None
            self._best[study.key] = counts.complete, score
        return score


def add_watching_routes(app: Bottle, engine: sa.Engine) -> None:
    """/healthz answers while this process does; /readyz while it reaches the database, else with 503."""
    studies, own = CollectorRegistry(), CollectorRegistry()
    studies.register(Studies(engine))
    errors = Counter("hpo_database_errors", "Scrapes and readiness checks that the database failed", registry=own)

    def metrics() -> bytes:
        response.content_type = CONTENT_TYPE_LATEST
        try:
            return generate_latest(studies) + generate_latest(own)
        except (HpoError, SQLAlchemyError):  # what is known without the database
            errors.inc()
            return generate_latest(own)

    def healthy() -> str:
        response.content_type = "text/plain"
        return "ok\n"

    def ready() -> str:
        response.content_type = "text/plain"
        try:
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        except SQLAlchemyError:
            errors.inc()
            response.status = 503
            return "the database is away\n"
        return "ok\n"

    app.route("/metrics", "GET", metrics)
    app.route(HEALTHY, "GET", healthy)
    app.route(READY, "GET", ready)
