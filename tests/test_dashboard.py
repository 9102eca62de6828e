"""The dashboard as people meet it: a real server, a real browser on a study that a worker is filling."""

import base64
import json
import os
import re
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from conftest import Hpo, Start, optuna_storage, write_study
from large_study import fill

from hpo.dashboard import _DashboardStorage, clean_against_perturbed

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


def address_of(dashboard: subprocess.Popen[str]) -> str:
    assert dashboard.stdout is not None
    line = dashboard.stdout.readline()
    found = re.search(r"dashboard on (https?://\S+)/dashboard", line)
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


def test_a_browser_watches_a_study_that_a_worker_fills(hpo: Hpo, start: Start, tmp_path: Path, browser: Any) -> None:
    study = write_study(tmp_path, budget=3)
    hpo("submit", study)
    page_server = start("dashboard", "--port", "0", "--read-only", HPO_DASHBOARD_PASSWORD=PASSWORD)
    address = address_of(page_server)
    paths = ["/", "/dashboard", "/api/studies", "/api/studies/1", "/static/bundle.js", "/csv/1", "/artifacts/1/1/0"]
    assert {answer(address + path) for path in paths} == {401}
    assert answer(address + "/api/studies", PASSWORD[:-1]) == 401

    page = browser.new_page(http_credentials={"username": "me", "password": PASSWORD})
    page.goto(f"{address}/dashboard/studies/1/trials")
    page.get_by_text("3 Trials").wait_for()
    finished = page.get_by_text("Complete", exact=True)
    assert finished.count() == 0
    worker = start("worker", "study", "--threads", "1")
    for count in (1, 3):
        finished.nth(count - 1).wait_for(timeout=60_000)
    assert worker.wait(30) == 0

    best = json.loads(hpo("best", "study", "--json").stdout)
    page.goto(f"{address}/dashboard/studies/1/trials?numbers={best['number']}")
    page.get_by_text(f"clean_accuracy {best['clean_accuracy']}").wait_for()
    page.get_by_text(f"{best['correct']['clean']} of {best['images']}").first.wait_for()
    pictures = page.locator("img[alt$='.png']")
    pictures.nth(1).wait_for()
    assert all(picture.evaluate("image => image.naturalWidth") > 300 for picture in pictures.all()[:2])
    page.screenshot(path=tmp_path / "best-trial.png")
    page.goto(f"{address}/dashboard/studies/1")
    page.get_by_text("Clean against perturbed accuracy").wait_for()
    refused = page.evaluate("fetch('/api/studies/1', {method: 'DELETE'}).then(answer => answer.status)")
    assert refused == 403
    assert json.loads(hpo("status", "study", "--json").stdout)["finished"] == 3
    page_server.terminate()
    assert page_server.wait(10) == 0


def test_other_addresses_need_a_password_and_a_certificate_or_a_warning(start: Start, hpo: Hpo, tmp_path: Path) -> None:
    hpo("submit", write_study(tmp_path))
    refused = hpo("dashboard", "--host", "0.0.0.0")  # noqa: S104
    assert refused.returncode == 2
    assert "other machines could see and change everything; set HPO_DASHBOARD_PASSWORD" in refused.stderr
    for given, reason in (("change-me", "is the example's password"), ("short", "at least 8 characters")):
        refused = hpo("dashboard", HPO_DASHBOARD_PASSWORD=given)
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
    assert "cannot be used" in hpo("dashboard", "--tls-certificate", "password", "--tls-key", "key.pem").stderr


def test_the_dashboard_reads_what_optuna_reads_and_sees_the_constraints(engine: sa.Engine) -> None:
    fill(engine, "large", 120, finished=100)
    backend = optuna_storage(engine.url)
    study_id = backend.get_study_id_from_name("large")
    watched = _DashboardStorage(backend)
    for _ in range(2):  # read anew, and from memory
        ours = watched.get_all_trials(study_id, deepcopy=False)
        theirs = backend.get_all_trials(study_id)
        assert len(ours) == 120
        for mine, other in zip(ours, theirs, strict=True):
            violation = other.system_attrs.get("constraints:clean_drop")
            assert mine.system_attrs.get("constraints") == (None if violation is None else [violation])
            mine_as_read = {key: value for key, value in mine.system_attrs.items() if key != "constraints"}
            assert mine_as_read == other.system_attrs
            for part in ("number", "state", "values", "params", "distributions", "intermediate_values"):
                assert getattr(mine, part) == getattr(other, part)
            for key, value in mine.user_attrs.items():
                assert value == other.user_attrs.get(
                    key, other.user_attrs.get("made_by", {}).get(key[len("made_by ") :])
                )
            assert other.user_attrs.keys() - mine.user_attrs.keys() <= {"epochs", "made_by"}
    best = watched.get_best_trial(study_id)
    study = optuna.load_study(study_name="large", storage=backend)
    assert best.number == study.best_trial.number


def test_the_plot_shows_every_complete_trial_once_with_front_and_baseline(engine: sa.Engine) -> None:
    fill(engine, "large", 60)
    backend = optuna_storage(engine.url)
    seen = backend.get_all_trials(backend.get_study_id_from_name("large"))
    figure = clean_against_perturbed(seen)
    assert figure is not None
    shown = {trace["name"]: trace for trace in figure["data"]}
    dots = shown["feasible"]["text"] + shown["loses too much clean accuracy"]["text"]
    complete = [trial for trial in seen if trial.state.name == "COMPLETE"]
    assert sorted(dots) == sorted(f"trial {trial.number}, score {trial.value:.4f}" for trial in complete)
    assert shown["baseline"]["text"][0].startswith("trial 0,")
    assert shown["front"]["x"] == sorted(shown["front"]["x"], reverse=True)
    assert shown["front"]["y"] == sorted(shown["front"]["y"])
    assert clean_against_perturbed([]) is None
