"""/metrics as Prometheus's own parser reads it, and the endpoints that supervisors ask."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from support.search import claim_next, optuna_storage, run
from support.studies import make_spec

from hpo.artifacts import Artifacts
from hpo.search.sql.queries import best_trials
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.web.dashboard import build_app


def ask(app: Any, path: str) -> tuple[int, str]:
    answered: list[int] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80"}
    environ |= {"wsgi.url_scheme": "http", "wsgi.input": None}
    body = b"".join(app(environ, lambda status, headers, *rest: answered.append(int(status[:3]))))
    return answered[0], body.decode()


def samples(app: Any) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    status, text = ask(app, "/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def test_metrics_say_what_the_database_says(sqlite_engine: sa.Engine, tmp_path: Path) -> None:
    run(sqlite_engine, make_spec(budget=4))
    submit(sqlite_engine, make_spec(name="waiting", budget=3))
    (study,) = find_studies(sqlite_engine, ["study"])
    extend(sqlite_engine, study, 6)
    claim_next(sqlite_engine, study, "worker-1")
    found = samples(build_app(optuna_storage(sqlite_engine.url), Artifacts(str(tmp_path))))
    assert found["hpo_trials", "complete", "study"] == 4
    assert found["hpo_trials", "running", "study"] == 1
    assert found["hpo_budget_trials", "study"] == 6
    assert found["hpo_workers", "study"] == 1
    assert 0 <= found["hpo_heartbeat_age_seconds", "study"] < 60
    assert found["hpo_best_score", "study"] == best_trials(sqlite_engine, "study", 1)[0].score
    assert (found["hpo_trials", "running", "waiting"], found["hpo_stopped", "waiting"]) == (0, 0)
    assert ("hpo_best_score", "waiting") not in found
    assert found["hpo_database_errors_total",] == 0


def test_a_database_that_is_away_is_told_and_counted(engine: sa.Engine, tmp_path: Path) -> None:
    storage = optuna_storage(engine.url)
    app = build_app(storage, Artifacts(str(tmp_path)))
    assert ask(app, "/readyz") == (200, "ok\n")

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def away(*_: Any) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    assert ask(app, "/readyz")[0] == 503
    assert ask(app, "/healthz") == (200, "ok\n")
    assert samples(app)["hpo_database_errors_total",] == 2
    sa.event.remove(storage.engine, "before_cursor_execute", away)
