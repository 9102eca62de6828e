"""The dashboard as people meet it: a real server, a real browser on a study that a worker is filling."""

import base64
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from large_study import fill
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from optuna_dashboard import save_note
from optuna_dashboard._importance import param_importance_cache
from support.commands import Hpo, Start
from support.search import claim_next, give_parameter, open_fresh, optuna_storage, pause, report, run
from support.studies import make_spec, write_study

from hpo.artifacts import Artifacts
from hpo.errors import StudyError
from hpo.search.sql import attributes, claims
from hpo.search.sql.attributes import ARTIFACTS_KEY
from hpo.search.sql.counts import count
from hpo.search.sql.fence import TrialLost
from hpo.search.sql.queries import best_trials
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.sql.tables import metadata, study_system_attributes, study_user_attributes, trial_system_attributes
from hpo.search.study_files import is_elsewhere, location_in_full
from hpo.search.worker import work
from hpo.web.dashboard import build_app
from hpo.web.drawing import part_against_part
from hpo.web.storage import DashboardStorage

PASSWORD = "a-long-password"  # noqa: S105
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's chromium, or the one that `playwright install chromium` brings."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        except Error as error:
            if "HPO_REQUIRE_BROWSER" in os.environ:
                raise
            pytest.skip(f"no browser (apt install chromium, or playwright install chromium): {error.message[:100]}")
        yield found
        found.close()


def address_of(dashboard: subprocess.Popen[str], base_path: str = "") -> str:
    assert dashboard.stdout is not None
    line = dashboard.stdout.readline()
    found = re.search(rf"dashboard on (https?://\S+){base_path}/dashboard", line)
    assert found, line + dashboard.stdout.read()
    return found[1]


def answer(url: str, password: str | None = None, context: ssl.SSLContext | None = None) -> int:
    request = urllib.request.Request(url)  # noqa: S310
    if password is not None:
        credentials = base64.b64encode(f"me:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answered:  # noqa: S310
            return int(answered.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_browser_watches_a_study_that_a_worker_fills(
    hpo_here: Hpo, start: Start, tmp_path: Path, browser: Any
) -> None:
    study = write_study(tmp_path, budget=3)
    hpo_here("submit", study)
    page_server = start("dashboard", "--port", "0", "--read-only", HPO_DASHBOARD_PASSWORD=PASSWORD)
    address = address_of(page_server)
    paths = ["/", "/dashboard", "/api/studies", "/api/studies/1", "/static/bundle.js", "/csv/1", "/artifacts/1/1/0"]
    assert {answer(address + path) for path in paths} == {401}
    assert answer(address + "/api/studies", PASSWORD[:-1]) == 401

    page = browser.new_page(http_credentials={"username": "me", "password": PASSWORD})
    page.goto(f"{address}/dashboard/studies/1/trials")
    page.get_by_text("0 Trials").wait_for()
    finished = page.get_by_text("Complete", exact=True)
    assert finished.count() == 0
    worker = start("worker", "study", "--threads", "1")
    for expected in (1, 3):
        finished.nth(expected - 1).wait_for(timeout=60_000)
    assert worker.wait(30) == 0

    best = json.loads(hpo_here("best", "study", "--json").stdout)
    page.goto(f"{address}/dashboard/studies/1/trials?numbers={best['number']}")
    page.get_by_text(f"clean {best['clean_accuracy']}", exact=True).wait_for()
    page.get_by_text(f"{best['correct']['clean']} of {best['images']}").first.wait_for()
    pictures = page.locator("img[alt$='.png']")
    pictures.nth(1).wait_for()
    assert all(picture.evaluate("image => image.naturalWidth") > 300 for picture in pictures.all()[:2])
    page.screenshot(path=tmp_path / "best-trial.png")
    page.goto(f"{address}/dashboard/studies/1")
    page.get_by_text("Clean against perturbed accuracy").wait_for()
    refused = page.evaluate("fetch('/api/studies/1', {method: 'DELETE'}).then(answer => answer.status)")
    assert refused == 403
    assert json.loads(hpo_here("status", "study", "--json").stdout)["finished"] == 3
    page_server.terminate()
    assert page_server.wait(10) == 0


def test_a_browser_annotates_renames_and_deletes(hpo_here: Hpo, start: Start, tmp_path: Path, browser: Any) -> None:
    for name in ("first", "second"):
        hpo_here("submit", write_study(tmp_path), "--set", f"name={name}")
    address = address_of(start("dashboard", "--port", "0", "--host", "127.0.0.2"))
    page = browser.new_page()
    page.goto(f"{address}/dashboard/studies/2/note")
    page.get_by_text("Trial 0 is the baseline").wait_for()
    page.get_by_role("button").last.click()
    page.locator("textarea").first.fill("what I think of it")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Success to save the note").wait_for()

    page.goto(f"{address}/dashboard")
    page.get_by_label("rename study").first.click()
    page.get_by_label("Study name").fill("second thoughts")
    page.wait_for_timeout(700)  # the page looks at what was typed when half a second has passed
    page.get_by_role("button", name="Rename").click()
    page.get_by_text("2. second thoughts").wait_for()
    page.get_by_label("delete study").last.click()
    page.get_by_role("button", name="Yes").click()
    page.get_by_text("Success to delete a study (id=1)").wait_for()
    page.screenshot(path=tmp_path / "deleted.png")
    assert page.get_by_text("1. first").count() == 0
    page.goto(f"{address}/dashboard/studies/2/note")
    page.get_by_text("what I think of it").wait_for()
    assert [study["study"] for study in json.loads(hpo_here("status", "--json").stdout)] == ["second thoughts"]


def test_other_addresses_need_a_password_and_a_certificate_or_a_warning(
    start: Start, hpo_here: Hpo, tmp_path: Path
) -> None:
    hpo_here("submit", write_study(tmp_path))
    refused = hpo_here("dashboard", "--host", "0.0.0.0")  # noqa: S104
    assert refused.returncode == 2
    assert "other machines could see and change everything; set HPO_DASHBOARD_PASSWORD" in refused.stderr
    for given, reason in (("change-me", "is the example's password"), ("short", "at least 8 characters")):
        refused = hpo_here("dashboard", HPO_DASHBOARD_PASSWORD=given)
        assert refused.returncode == 2
        assert reason in refused.stderr

    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([*make, *subject], cwd=tmp_path, check=True, capture_output=True)
    certificate = ["--tls-certificate", "certificate.pem", "--tls-key", "key.pem"]
    everywhere = ["--host", "0.0.0.0", "--port", "0", "--password-file", "password"]  # noqa: S104
    address = address_of(start("dashboard", *everywhere, *certificate)).replace("0.0.0.0", "localhost")  # noqa: S104
    assert address.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    assert answer(f"{address}/api/studies", context=trusted) == 401
    assert answer(f"{address}/api/studies", PASSWORD, trusted) == 200

    unencrypted = start("dashboard", *everywhere)
    address_of(unencrypted)
    assert unencrypted.stdout is not None
    assert "warning: without TLS" in unencrypted.stdout.readline()
    assert "cannot be used" in hpo_here("dashboard", "--tls-certificate", "password", "--tls-key", "key.pem").stderr


def test_the_dashboard_reads_what_optuna_reads_and_sees_the_constraints(engine: sa.Engine) -> None:
    fill(engine, "large", 120, finished=100)
    backend = optuna_storage(engine.url)
    study_id = backend.get_study_id_from_name("large")
    watched = DashboardStorage(backend)
    added = ("constraints", "hpo:parts")
    for _ in range(2):  # read anew, and from memory
        ours = watched.get_all_trials(study_id, deepcopy=False)
        theirs = backend.get_all_trials(study_id)
        assert len(ours) == 100
        for mine, other in zip(ours, theirs, strict=True):
            violation = other.system_attrs.get("constraints:clean_drop")
            assert mine.system_attrs.get("constraints") == (None if violation is None else [violation])
            mine_as_read = {key: value for key, value in mine.system_attrs.items() if key not in added}
            assert mine_as_read == other.system_attrs
            for part in ("number", "state", "values", "params", "distributions", "intermediate_values"):
                assert getattr(mine, part) == getattr(other, part)
            for key, value in mine.user_attrs.items():
                parts, made_by = other.user_attrs["parts"], other.user_attrs["made_by"]
                assert value == (other.user_attrs | parts).get(key, made_by.get(key[len("made_by ") :]))
            assert other.user_attrs.keys() - mine.user_attrs.keys() <= {"reports", "parts", "made_by"}
    best = watched.get_best_trial(study_id)
    study = optuna.load_study(study_name="large", storage=backend)
    assert best.number == study.best_trial.number


def test_the_plot_shows_every_complete_trial_once_with_front_and_baseline(engine: sa.Engine) -> None:
    fill(engine, "large", 60)
    backend = optuna_storage(engine.url)
    seen = backend.get_all_trials(backend.get_study_id_from_name("large"))
    figure = part_against_part(seen)
    assert figure is not None
    shown = {trace["name"]: trace for trace in figure["data"]}
    dots = shown["feasible"]["text"] + shown["infeasible"]["text"]
    complete = [trial for trial in seen if trial.state.name == "COMPLETE"]
    assert sorted(dots) == sorted(f"trial {trial.number}, score {trial.value:.4f}" for trial in complete)
    assert shown["baseline"]["text"][0].startswith("trial 0,")
    assert shown["front"]["x"] == sorted(shown["front"]["x"], reverse=True)
    assert shown["front"]["y"] == sorted(shown["front"]["y"])
    assert part_against_part([]) is None


def ask(app: Any, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> tuple[int, bytes]:
    """(status, body) of a request to a WSGI application; body: JSON, or what is to be sent."""
    path, _, query = path.partition("?")
    sent = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    environ |= {"wsgi.input": io.BytesIO(sent), "CONTENT_LENGTH": str(len(sent)), "CONTENT_TYPE": "application/json"}
    setup_testing_defaults(environ)
    answered: list[int] = []
    content = b"".join(app(environ, lambda status, headers, *rest: answered.append(int(status[:3]))))
    return answered[0], content


def detail(app: Any, study_id: int = 1) -> dict[str, Any]:
    status, content = ask(app, "GET", f"/api/studies/{study_id}")
    assert status == 200
    return dict(json.loads(content))


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(str(tmp_path / "artifacts"))


def optuna_study(storage: RDBStorage, name: str, directions: list[str], trials: int = 6) -> int:
    """A study of Optuna's own making, with names of attributes that hpo uses too, and trials in every state."""
    study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    study.set_user_attr("budget", 3)
    study.set_user_attr("artifacts", {"of": "another kind"})
    for number in range(trials):
        trial = study.ask()
        x, kind = trial.suggest_float("x", -1, 1), trial.suggest_categorical("kind", ["a", "b"])
        save_note(trial, f"on trial {number}")
        trial.set_user_attr("epochs", number)
        trial.set_user_attr("made_by", {"version": 1})
        trial.set_user_attr("clean_accuracy", x)
        trial.set_user_attr("mean_perturbed_accuracy", x)
        trial.set_user_attr("correct", "all")
        trial.set_user_attr("baseline", True)
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", [x])
        study._storage.set_trial_system_attr(trial._trial_id, "constraints:clean_drop", x)
        picture = {"artifact_id": f"{number:x}", "filename": "p.png", "mimetype": "image/png", "encoding": None}
        study._storage.set_trial_system_attr(trial._trial_id, f"artifacts:{number:x}", json.dumps(picture))
        if len(directions) == 1:
            trial.report(x, 3)
            trial.report(-x, 1)
        ends = {3: TrialState.FAIL, 5: TrialState.PRUNED}
        if number in ends and len(directions) == 1:
            study.tell(trial, state=ends[number])
        elif number < trials - 2:
            study.tell(trial, [x + (kind == "a"), -x, float("inf")][: len(directions)])
    study.enqueue_trial({"x": 0.5})
    save_note(study, "a note\n" * 500)
    return int(study._study_id)


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"]])
def test_what_hpo_did_not_make_is_shown_as_optuna_dashboard_alone_shows_it(
    engine: sa.Engine, artifacts: Artifacts, directions: list[str]
) -> None:
    fill(engine, "large", 20)
    storage = optuna_storage(engine.url)
    study_id = optuna_study(storage, "plain", directions, trials=14)
    ours, theirs = build_app(storage, artifacts), optuna_dashboard.wsgi(optuna_storage(engine.url), artifacts._store)
    study = f"/api/studies/{study_id}"
    for _ in range(2):  # read anew, and from memory
        for path in ("/api/studies", study, f"{study}?after=7", f"{study}/param_importances", f"/csv/{study_id}"):
            param_importance_cache.clear()  # both would take them from there
            mine = ask(ours, "GET", path)
            param_importance_cache.clear()
            other = ask(theirs, "GET", path)
            assert mine[0] == other[0] == 200
            assert in_any_order(mine[1]) == in_any_order(other[1])
    assert len(detail(ours, study_id)["trials"]) == 15


def in_any_order(content: bytes) -> Any:
    """Lists of named things come in no order of their own."""
    try:
        document = json.loads(content)
    except ValueError:
        return content
    for trial in [*document.get("trials", []), *document.get("best_trials", []), document]:
        for key in ("params", "user_attrs", "artifacts", "union_user_attrs", "union_search_space"):
            if key in trial:
                trial[key].sort(key=json.dumps)
    return document


def test_a_study_that_has_a_deleted_ones_ids_is_shown_itself(engine: sa.Engine, artifacts: Artifacts) -> None:
    storage = optuna_storage(engine.url)
    app = build_app(storage, artifacts)
    wide = make_spec().model_dump(mode="json")["search"]
    for changes in ({}, {"seed": 7, "search": wide | {"batch_size": 16, "learning_rate": 0.01}}, {"seed": 7}):
        study = run(engine, make_spec(budget=16, sampler={"name": "random"}, **changes))
        at = f"/api/studies/{study._study_id}"
        shown = [ask(app, "GET", path) for path in (at, f"{at}/param_importances", f"/csv/{study._study_id}")]
        assert [trial["values"] for trial in json.loads(shown[0][1])["trials"]] == [t.values for t in study.trials]
        param_importance_cache.clear()
        fresh = build_app(optuna_storage(engine.url), artifacts)
        assert shown == [ask(fresh, "GET", path) for path in (at, f"{at}/param_importances", f"/csv/{study._study_id}")]
        assert [status for status, _ in shown] == [200, 200, 200]
        optuna.delete_study(study_name="study", storage=storage)
        assert ask(app, "GET", at)[0] == 404


def test_a_browser_that_knows_a_deleted_study_is_told_to_load_the_page_again(
    engine: sa.Engine, artifacts: Artifacts
) -> None:
    storage = optuna_storage(engine.url)
    app = build_app(storage, artifacts)
    run(engine, make_spec(sampler={"name": "random"}))
    assert len(json.loads(ask(app, "GET", "/api/studies/1?after=4")[1])["trials"]) == 2
    assert ask(app, "GET", "/api/studies/1?after=6")[0] == 200
    assert ask(app, "DELETE", "/api/studies/1", {})[0] == 200
    new, _ = submit(engine, make_spec(seed=7))
    status, content = ask(app, "GET", f"/api/studies/{new.study_id}?after=6")
    assert status == 409
    assert "reload the page" in json.loads(content)["reason"]
    assert len(detail(app, new.study_id)["trials"]) == 0


def test_a_paused_trial_has_not_ended(engine: sa.Engine, artifacts: Artifacts) -> None:
    study, _ = submit(engine, make_spec())
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    give_parameter(engine, claim.hold)
    report(engine, claim.hold, 1, 0.5)
    pause(engine, study.study_id, claim.hold, 1, 0.5)
    (trial,) = [t for t in detail(build_app(optuna_storage(engine.url), artifacts))["trials"] if t["params"]]
    assert (trial["state"], trial["values"]) == ("Waiting", [0.5])
    assert "datetime_start" in trial
    assert "datetime_complete" not in trial


def rows_of(engine: sa.Engine) -> dict[str, int]:
    """How many rows each of Optuna's tables holds."""
    with engine.connect() as connection:
        count = sa.func.count()
        found = {t.name: connection.scalar(sa.select(count).select_from(t)) for t in metadata.sorted_tables}
    return {name: rows for name, rows in found.items() if rows}


def test_deleting_a_study_leaves_nothing_of_it_and_all_of_others(engine: sa.Engine, artifacts: Artifacts) -> None:
    app = build_app(optuna_storage(engine.url), artifacts)
    plain = optuna_study(optuna_storage(engine.url), "plain", ["maximize"])
    before = rows_of(engine)
    study, _ = submit(engine, make_spec())
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    give_parameter(engine, claim.hold)
    report(engine, claim.hold, 1, 0.5)
    for name in ("study/trial-1.checkpoint.safetensors", "study/baseline.safetensors", "other/trial-1", "5", "abc"):
        artifacts.write(name, b"kept")
    assert ask(app, "DELETE", f"/api/studies/{study.study_id}", b"{no JSON")[0] == 400
    assert rows_of(engine) != before
    assert json.loads(ask(app, "DELETE", f"/api/studies/{study.study_id}", {})[1]) == {}
    assert rows_of(engine) == before
    with pytest.raises(TrialLost):
        report(engine, claim.hold, 2, 0.6)
    assert not claims.give_back(engine, claim.hold, "stopped", "late")
    assert rows_of(engine) == before
    root = Path(artifacts.location)
    assert sorted(str(file.relative_to(root)) for file in root.rglob("*")) == ["5", "abc", "other", "other/trial-1"]

    spared, _ = submit(engine, make_spec())
    artifacts.write("study/baseline.safetensors", b"kept")
    keep_files = {"remove_associated_artifacts": False}
    assert ask(app, "DELETE", f"/api/studies/{spared.study_id}", keep_files)[0] == 200
    assert artifacts.read("study/baseline.safetensors") == b"kept"
    assert ask(app, "DELETE", f"/api/studies/{plain}", {"remove_associated_artifacts": True})[0] == 200
    assert rows_of(engine) == {}
    assert not (root / "5").exists()
    status, content = ask(app, "DELETE", f"/api/studies/{plain}", {})
    assert (status, json.loads(content)) == (404, {"reason": f"study_id={plain} is not found"})


def test_a_study_is_deleted_while_workers_write(engine: sa.Engine, artifacts: Artifacts) -> None:
    app = build_app(optuna_storage(engine.url), artifacts)
    study, _ = submit(engine, make_spec(budget=400, pruner={"name": "asha", "min_epochs": 1}))
    ended: list[str] = []

    def keep_working(name: str) -> None:
        try:
            work(engine, ["study"], FreeObjective, name, lambda text: None)
        except StudyError as error:
            ended.append(str(error))

    workers = [threading.Thread(target=keep_working, args=(f"worker-{i}",)) for i in range(3)]
    for worker in workers:
        worker.start()
    while count(engine, study.study_id).finished < 20:
        time.sleep(0.05)
    assert ask(app, "DELETE", f"/api/studies/{study.study_id}", {})[0] == 200
    for worker in workers:
        worker.join(30)
    assert ["no study 'study'" in text or text == "the study was deleted" for text in ended] == [True] * 3
    assert rows_of(engine) == {}


def test_a_renamed_study_keeps_everything(engine: sa.Engine, artifacts: Artifacts) -> None:
    app = build_app(optuna_storage(engine.url), artifacts)
    random = {"name": "random"}
    before = run(engine, make_spec(sampler=random))
    with writing(engine) as connection:
        note = {"dashboard:note_ver": 2, "dashboard:note_str:0": "a note"}
        attributes.write(connection, study_system_attributes, before._study_id, note)
    extend(engine, find_studies(engine, ["study"])[0], 8)
    claim = claim_next(engine, find_studies(engine, ["study"])[0], "worker")
    assert claim is not None
    give_parameter(engine, claim.hold)
    checkpoint = f"trial-{claim.number}.checkpoint"
    artifacts.write(f"study/{checkpoint}", b"checkpoint")

    def rename(name: Any) -> tuple[int, dict[str, Any]]:
        status, content = ask(app, "POST", f"/api/studies/{before._study_id}/rename", {"study_name": name})
        return status, json.loads(content)

    status, answer = rename("other")
    assert status == 400
    assert "1 of its trials are running, and their workers know it by its name; `hpo stop study`" in answer["reason"]
    claims.give_back(engine, claim.hold, "stopped", "stopped")
    submit(engine, make_spec(name="taken"))
    for name, reason in (("taken", "there is a study 'taken' already"), ("a/b", "name: must not"), (" ", "name: must")):
        assert (refused := rename(name))[0] == 400
        assert reason in refused[1]["reason"]
    for name in ("", None, 3):
        assert rename(name)[0] == 400
    assert [study.name for study in find_studies(engine)] == ["study", "taken"]
    assert artifacts.read(f"study/{checkpoint}") == b"checkpoint"

    rows = rows_of(engine)
    old = optuna_storage(engine.url).get_all_trials(before._study_id)
    status, answer = rename("other")
    assert (status, answer["study_id"], answer["study_name"]) == (201, before._study_id, "other")
    assert rows_of(engine) == rows
    assert optuna_storage(engine.url).get_all_trials(before._study_id) == old
    assert detail(app, before._study_id)["name"] == "other"
    assert detail(app, before._study_id)["note"] == {"version": 2, "body": "a note"}
    assert best_trials(engine, "other", 1)[0].score == before.best_value
    assert artifacts.read(f"other/{checkpoint}") == b"checkpoint"
    assert not (Path(artifacts.location) / "study").exists()
    assert not submit(engine, make_spec(name="other", sampler=random))[1]
    assert submit(engine, make_spec())[1]
    work(engine, ["other"], FreeObjective, "worker", lambda text: None)
    assert count(engine, before._study_id).finished == 8


def test_what_others_made_is_renamed_too_and_may_be_running(engine: sa.Engine, artifacts: Artifacts) -> None:
    storage = optuna_storage(engine.url)
    app = build_app(storage, artifacts)
    study = optuna.create_study(study_name="plain", storage=storage)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    rename = f"/api/studies/{study._study_id}/rename"
    assert ask(app, "POST", rename, {"study_name": "x" * 513})[0] == 400
    assert ask(app, "POST", rename, {"study_name": "ours / theirs"})[0] == 201
    study.tell(trial, 0.5)
    assert optuna.load_study(study_name="ours / theirs", storage=optuna_storage(engine.url)).best_value == 0.5
    assert ask(app, "POST", "/api/studies/99/rename", {"study_name": "x"})[0] == 404


def test_where_the_workers_keep_their_pictures_is_said_if_it_is_elsewhere(engine: sa.Engine, tmp_path: Path) -> None:
    study, _ = submit(engine, make_spec())
    claim_next(engine, study, "worker")
    there, here = str(tmp_path / "there"), Artifacts(str(tmp_path / "here"))
    with writing(engine) as connection:
        attributes.write(connection, study_user_attributes, study.study_id, {ARTIFACTS_KEY: there})
    at = f"/api/studies/{study.study_id}"
    apps = [build_app(optuna_storage(engine.url), artifacts) for artifacts in (here, Artifacts(there))]
    shown, plain = (detail(app, study.study_id)["note"] for app in apps)
    assert f"HPO_ARTIFACTS={there}" in shown["body"]
    assert shown["body"].endswith(plain["body"])
    assert there not in plain["body"]
    written = {"version": shown["version"] + 1, "body": shown["body"] + " and more"}
    assert ask(apps[0], "PUT", f"{at}/note", written)[0] == 200
    assert detail(apps[1], study.study_id)["note"]["body"] == plain["body"] + " and more"
    assert detail(apps[0], study.study_id)["note"]["body"] == shown["body"] + " and more"

    trial_id = detail(apps[0], study.study_id)["trials"][0]["trial_id"]
    picture = {"artifact_id": "abc", "filename": "predictions.png", "mimetype": "image/png", "encoding": None}
    with writing(engine) as connection:
        attributes.write(connection, trial_system_attributes, trial_id, {"artifacts:abc": json.dumps(picture)})
    note = detail(apps[0], study.study_id)["trials"][0]["note"]
    assert note["body"].startswith("**The workers of this study store its figures in")
    written = {"version": note["version"] + 1, "body": note["body"] + " and more"}
    assert ask(apps[0], "PUT", f"{at}/{trial_id}/note", written)[0] == 200
    note = detail(apps[0], study.study_id)["trials"][0]["note"]
    assert note["body"].startswith("| part |")
    assert note["body"].endswith(" and more")

    here.write("study/baseline.safetensors", b"of another database's study")
    assert ask(apps[0], "DELETE", at, {})[0] == 200
    assert here.read("study/baseline.safetensors")


def test_the_dashboard_says_at_its_start_where_pictures_are(start: Start, tmp_path: Path) -> None:
    made = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    for number in range(7):
        submit(made, make_spec(name=f"study-{number}"))
    storage = optuna_storage(made.url)
    optuna_study(storage, "plain", ["minimize"])
    for study in storage.get_all_studies()[:7]:
        storage.set_study_user_attr(study._study_id, ARTIFACTS_KEY, "s3://bucket/prefix")
    storage.set_study_user_attr(1, ARTIFACTS_KEY, str(tmp_path / "hpo-artifacts"))
    server = start("dashboard", "--port", "0")
    address = address_of(server)
    assert server.stdout is not None
    said = server.stdout.readline()
    assert said.startswith(
        "warning: figures of study-1, study-2, study-3, study-4, study-5 and 1 more are in s3://bucke"
    )
    assert f"reads {tmp_path}/hpo-artifacts: start it with HPO_ARTIFACTS=s3://bucket/prefix" in said
    with urllib.request.urlopen(f"{address}/api/studies/2") as page:  # noqa: S310
        assert "HPO_ARTIFACTS=s3://bucket/prefix" in json.load(page)["note"]["body"]


def test_locations_are_compared_as_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Artifacts("hpo-artifacts")
    (tmp_path / "link").symlink_to("hpo-artifacts")
    for same in (None, "hpo-artifacts", f"{tmp_path}/hpo-artifacts/", f"{tmp_path}/link"):
        assert not is_elsewhere(same, relative)
    assert is_elsewhere(str(tmp_path), relative)
    assert is_elsewhere("s3://bucket/prefix", relative)
    assert location_in_full("s3://key:secret@bucket/prefix/") == "s3://bucket/prefix"
    assert location_in_full("~/artifacts") == str(Path.home() / "artifacts")
