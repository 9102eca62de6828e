"""The dashboard below a path, behind the proxies of deploy/, for programs and for a browser."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from postgresql_servers import free_port
from support.commands import Hpo, Start
from support.studies import write_study
from test_dashboard import PASSWORD, address_of, browser  # noqa: F401

from hpo.cli.main import cli

DEPLOY = Path(__file__).parent.parent / "deploy"
CREDENTIALS = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
Proxy = Callable[[str], str]


def _nginx(folder: Path, upstream: str, port: int) -> list[str]:
    location = (DEPLOY / "nginx.conf").read_text().replace("127.0.0.1:8080", upstream)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port};\n{location}\n}} }}\n"
    )
    return ["nginx", "-c", str(folder / "nginx.conf")]


def _caddy(folder: Path, upstream: str, port: int) -> list[str]:
    (folder / "Caddyfile").write_text(
        "{\n\tadmin off\n}\n" + (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8080", upstream)
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(params=[_nginx, _caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """Starts it before an address; where it is then."""
    program = "nginx" if request.param is _nginx else "caddy"
    if shutil.which(program) is None:
        if "HPO_REQUIRE_PROXIES" in os.environ:
            raise AssertionError(f"{program} is not installed")
        pytest.skip(f"no {program}")
    started: list[subprocess.Popen[bytes]] = []

    def start(address: str) -> str:
        port = free_port()
        command = request.param(tmp_path, address.removeprefix("http://"), port)
        environment = os.environ | {"SITE": f"http://127.0.0.1:{port}", "XDG_DATA_HOME": str(tmp_path)}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                answer(f"http://127.0.0.1:{port}/")
                return f"http://127.0.0.1:{port}"
            assert time.monotonic() < deadline
            time.sleep(0.1)

    yield start
    for process in started:
        process.terminate()
        process.wait()


def answer(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """(status, text). With a body, it is sent by PUT."""
    request = urllib.request.Request(url, body, method="PUT" if body else "GET")  # noqa: S310
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=20) as answered:  # noqa: S310
            return int(answered.status), answered.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_below_a_path_behind_a_proxy(proxy: Proxy, hpo_here: Hpo, start: Start, tmp_path: Path) -> None:
    assert hpo_here("submit", write_study(tmp_path, budget=3)).returncode == 0
    server = start("dashboard", "--port", "0", "--base-path", "/hpo", HPO_DASHBOARD_PASSWORD=PASSWORD)
    upstream = address_of(server, "/hpo")
    site = proxy(upstream)
    known = {"Authorization": f"Basic {CREDENTIALS}"}
    assert answer(f"{site}/hpo/dashboard")[0] == 401
    status, page = answer(f"{site}/hpo/dashboard/studies/1", **known)
    assert status == 200
    assert 'src="/hpo/static/bundle.js"' in page
    assert answer(f"{upstream}/healthz") == (200, "ok\n")
    assert answer(f"{upstream}/dashboard", **known)[0] == 404
    assert save_note(f"{site}/hpo", "https://elsewhere.org") == 403
    assert save_note(f"{site}/hpo", site) == 200


def save_note(address: str, origin: str) -> int:
    """The status, when a browser whose page is of this origin saves the study's note."""
    known = {"Authorization": f"Basic {CREDENTIALS}", "Content_Type": "application/json", "Origin": origin}
    status, detail = answer(f"{address}/api/studies/1", **known)
    assert status == 200
    note = {"version": json.loads(detail)["note"]["version"] + 1, "body": "by a browser"}
    return answer(f"{address}/api/studies/1/note", json.dumps(note).encode(), **known)[0]


def test_a_browser_finds_everything_below_a_path(
    browser: Any,  # noqa: F811
    hpo_here: Hpo,
    start: Start,
    tmp_path: Path,
) -> None:
    """That the program asks below the path, of whatever it asks for."""
    study = write_study(tmp_path, budget=1)
    assert hpo_here("run", study).returncode == 0
    address = address_of(start("dashboard", "--port", "0", "--base-path", "/a/hpo"), "/a/hpo")
    page, answers = browser.new_page(), []
    page.on("response", lambda response: answers.append((response.status, response.url.removeprefix(address))))
    page.goto(f"{address}/a/hpo/")
    page.get_by_text("1. study").click()
    page.get_by_text("Hyperparameter").first.wait_for()
    page.goto(f"{address}/a/hpo/dashboard/studies/1/trials")
    page.get_by_role("img").first.wait_for()
    page.wait_for_load_state("networkidle")
    paths = [path for _, path in answers if not path.startswith(("data:", "blob:"))]
    assert [(status, path) for status, path in answers if status >= 400] == []
    assert [path for path in paths if not path.startswith("/a/hpo/")] == []
    assert any("/artifacts/" in path for path in paths)
    assert any("/api/studies/1" in path for path in paths)


def test_a_proxy_that_changes_the_host_is_told_of_by_its_origin(hpo_here: Hpo, start: Start, tmp_path: Path) -> None:
    assert hpo_here("submit", write_study(tmp_path, budget=1)).returncode == 0
    origin = "https://hpo.example.org"
    server = start("dashboard", "--port", "0", "--public-origin", origin, HPO_DASHBOARD_PASSWORD=PASSWORD)
    address = address_of(server)
    assert save_note(address, f"{origin}.elsewhere.org") == 403
    assert save_note(address, "http://hpo.example.org") == 403
    assert save_note(address, origin) == 200


@pytest.mark.parametrize(
    "arguments",
    [("--base-path", "hpo"), ("--base-path", "/hpo/"), ("--base-path", "/a b"), ("--public-origin", "x.org")],
)
def test_what_is_no_path_or_origin_is_refused(arguments: tuple[str, str]) -> None:
    ran = CliRunner().invoke(cli, ["dashboard", *arguments])
    assert ran.exit_code != 0
    assert "must be like" in str(ran.exception)
