"""What the page is told of a study: remembered where it no longer changes, equal to what optuna-dashboard would say,
and compressed.
"""

import gzip
import io
import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import sqlalchemy as sa
from free_objective import FreeObjective
from large_study import fill
from optuna_dashboard import save_note
from support.search import claim_next, end, give_parameter, optuna_storage, report, run
from support.studies import make_spec

from hpo.artifacts import Artifacts
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import extend
from hpo.search.worker import work
from hpo.web.dashboard import build_app
from hpo.web.storage import DashboardStorage


def ask(app: Any, path: str, **headers: str) -> tuple[dict[str, str], bytes]:
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query} | headers
    environ |= {"wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    started: list[Any] = []
    content = b"".join(app(environ, lambda *arguments: started.append(arguments)))
    assert started[0][0].startswith("200")
    return dict(started[0][1]), content


def in_order(content: bytes) -> Any:
    document = json.loads(content)
    for part in [*document["trials"], *document["best_trials"], document]:
        for key in ("params", "user_attrs", "union_user_attrs", "union_search_space", "intersection_search_space"):
            part.get(key, []).sort(key=json.dumps)
    return document


def test_it_is_what_optuna_dashboard_would_say_whatever_was_read_before(engine: sa.Engine, tmp_path: Path) -> None:
    artifacts, storage = Artifacts(str(tmp_path)), optuna_storage(engine.url)
    app = build_app(storage, artifacts)

    def compare(*afters: int) -> None:
        for after in (0, *afters):
            path = f"/api/studies/1?after={after}"
            theirs = optuna_dashboard.wsgi(DashboardStorage(optuna_storage(engine.url), artifacts))
            ask(theirs, path)  # reads the trials, from which plot and notes are drawn
            assert in_order(ask(app, path)[1]) == in_order(ask(theirs, path)[1])

    run(engine, make_spec(budget=6))
    compare(3, 6)
    (study,) = find_studies(engine, ["study"])
    extend(engine, study, 9)
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    compare(6)
    give_parameter(engine, claim.hold)
    report(engine, claim.hold, 1, 0.5)
    compare(6)
    for number in (0, 5):
        save_note(study_of(storage, number), f"of trial {number}, *kept*")
        compare()
    save_note(study_of(storage), "of the study")
    compare(2)
    end(engine, claim.hold, "COMPLETE", 0.9)
    compare(6, 7)
    work(engine, ["study"], FreeObjective, "worker", lambda text: None)
    compare(6, 9)


def study_of(storage: Any, number: int | None = None) -> Any:
    study = optuna.load_study(study_name="study", storage=storage)
    return study if number is None else optuna.Trial(study, study.trials[number]._trial_id)


def test_large_answers_are_compressed_for_those_who_can_read_them(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, "large", 50)
    app = build_app(optuna_storage(engine.url), Artifacts(str(tmp_path)))
    headers, plain = ask(app, "/api/studies/1")
    assert "Content-Encoding" not in headers
    headers, packed = ask(app, "/api/studies/1", HTTP_ACCEPT_ENCODING="gzip, br")
    assert headers["Content-Encoding"] == "gzip"
    assert int(headers["Content-Length"]) == len(packed) < len(plain) / 4
    assert gzip.decompress(packed) == plain
    headers, small = ask(app, "/api/meta", HTTP_ACCEPT_ENCODING="gzip")
    assert "Content-Encoding" not in headers
    json.loads(small)
