"""Five hosts as network namespaces with their own addresses: PostgreSQL on one, a worker on each of three, the
dashboard on the fifth. A worker's host is cut off for longer than the grace period and comes back, then the database's
host is cut off; then looks whether the budget was used exactly, as the dashboard tells it too.

    sudo python benchmarks/hosts.py            (some six minutes; --short: with a grace period of 2 s, 40 s)

Needs Linux, and the right to make network namespaces.
"""

import argparse
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from faults import Plan, examine, make_spec
from postgresql_servers import postgresql

from hpo.search.sql.counts import Counts, count
from hpo.search.sql.storage import create_database
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url

HERE = Path(__file__).resolve().parent
HOSTS = ("database", "worker-1", "worker-2", "worker-3", "dashboard")
NETWORK = "10.213.77"
PORT = 5432
PASSWORD = "a-long-password"  # noqa: S105


@dataclass(frozen=True)
class Times:
    """In seconds. away: how long a worker's host, then the database's, is cut off."""

    heartbeat: float
    grace: float
    away: tuple[float, float]
    epoch: float
    budget: int


LONG = Times(heartbeat=10, grace=60, away=(90, 60), epoch=2.0, budget=120)
SHORT = Times(heartbeat=0.5, grace=2, away=(6, 4), epoch=0.4, budget=36)


class Network:
    """The hosts, on one bridge; this machine is on it too."""

    def __init__(self) -> None:
        self.tag = f"h{os.getpid() % 10_000}"

    def __enter__(self) -> "Network":
        self.ip(f"link add {self.tag}br type bridge")
        self.ip(f"addr add {NETWORK}.254/24 dev {self.tag}br")
        self.ip(f"link set {self.tag}br up")
        for number, host in enumerate(HOSTS, 1):
            self.ip(f"netns add {self.tag}{host}")
            self.ip(f"link add {self.tag}v{number} type veth peer name eth0 netns {self.tag}{host}")
            self.ip(f"link set {self.tag}v{number} master {self.tag}br up")
            for command in (f"addr add {self.address(host)}/24 dev eth0", "link set eth0 up", "link set lo up"):
                self.ip(f"-n {self.tag}{host} {command}")
        return self

    def __exit__(self, *error: object) -> None:
        for host in HOSTS:
            self.ip(f"netns del {self.tag}{host}")
        self.ip(f"link del {self.tag}br")

    def address(self, host: str) -> str:
        return f"{NETWORK}.{HOSTS.index(host) + 1}"

    def cut(self, host: str) -> None:
        self.ip(f"link set {self.tag}v{HOSTS.index(host) + 1} down")

    def join(self, host: str) -> None:
        self.ip(f"link set {self.tag}v{HOSTS.index(host) + 1} up")

    def ip(self, command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True)

    @contextlib.contextmanager
    def running(
        self, host: str, command: list[str], log: Path, **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process on a host; its stdin stays open."""
        command = ["ip", "netns", "exec", f"{self.tag}{host}", *command]
        with log.open("wb") as said:
            process = subprocess.Popen(
                command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait()


def serve_database(address: str) -> None:
    """Runs on the database's host until stdin closes or it is told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with postgresql() as server:
        engine = sa.create_engine(parse_url(server.get_uri()), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE hpo LOGIN PASSWORD '{PASSWORD}'")
            connection.exec_driver_sql("CREATE DATABASE hpo OWNER hpo")
        engine.dispose()
        with Path(server.pgdata, "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 scram-sha-256\n")
        as_owner = ["runuser", "-u", server.system_user, "--"] if server.system_user else []
        options = f"-h {address} -p {PORT} -k {server.pgdata}"  # the package lets it listen to no address
        control = [*as_owner, str(server.bin_path / "pg_ctl"), "-w", "-D", str(server.pgdata)]
        subprocess.run([*control, "-o", options, "-l", str(server.log), "restart"], check=True)
        with contextlib.suppress(SystemExit):
            sys.stdin.read()
        subprocess.run([*control, "-m", "fast", "stop"], check=True)


def wait_for(condition: Any, secs: float) -> None:
    deadline = time.monotonic() + secs
    while True:
        with contextlib.suppress(Exception):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


def run(times: Times, folder: Path) -> dict[str, Any]:
    with Network() as network, contextlib.ExitStack() as started:

        def start(host: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
            return started.enter_context(
                network.running(host, [sys.executable, *command], folder / f"{host}.log", **environment)
            )

        address = network.address("database")
        start("database", str(HERE / "hosts.py"), "--serve-database", address)
        url = f"postgresql://hpo:{PASSWORD}@{address}:{PORT}/hpo"
        wait_for(lambda: sa.create_engine(parse_url(url)).connect().close() is None, 60)
        engine = create_database(parse_url(url))
        plan = Plan(budget=times.budget, epochs=3)
        study, _ = submit(engine, make_spec(plan))
        start("dashboard", "-m", "hpo", "dashboard", "--host", network.address("dashboard"), "--read-only",
              HPO_STORAGE=url, HPO_DASHBOARD_PASSWORD=PASSWORD)  # fmt: skip
        given = {"EPOCH_SECS": str(times.epoch), "HEARTBEAT_SECS": str(times.heartbeat), "GRACE_SECS": str(times.grace)}
        workers = [
            start(host, str(HERE / "free_worker.py"), study.name, HPO_STORAGE=url, HPO_ARTIFACTS=str(folder), **given)
            for host in HOSTS[1:4]
        ]
        wait_for(lambda: counts(engine, study).finished >= times.budget // 6, 300)
        network.cut("worker-1")
        time.sleep(times.away[0])
        failed = counts(engine, study).failed
        network.join("worker-1")
        wait_for(lambda: counts(engine, study).finished >= times.budget // 2, 300)
        network.cut("database")
        time.sleep(times.away[1])
        network.join("database")
        codes = [worker.wait(600) for worker in workers]
        found = examine(engine, study, plan)
        found |= {"exit codes": codes, "failed while worker-1 was away": failed}
        found["the dashboard's trials"] = shown(network.address("dashboard"))
        found["trials of worker-1 after it was away"] = (folder / "worker-1.log").read_text().count("complete")
        engine.dispose()
        return found


def counts(engine: sa.Engine, study: Study) -> Counts:
    return count(engine, study.study_id)


def shown(host: str) -> int:
    """How many trials the dashboard has."""
    credentials = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(f"http://{host}:8080/api/studies/1")
    request.add_header("Authorization", f"Basic {credentials}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.load(answer)["trials"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--serve-database", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_database:
        serve_database(arguments.serve_database)
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(SHORT if arguments.short else LONG, Path(folder))
        for host in HOSTS if found["wrong"] or any(found["exit codes"]) else ():
            print(f"--- {host}\n{Path(folder, f'{host}.log').read_text()[-3000:]}", file=sys.stderr)
    print(json.dumps(found | {"seconds": round(time.monotonic() - started)}, indent=1))
    sys.exit(bool(found["wrong"]) or any(found["exit codes"]))


if __name__ == "__main__":
    main()
