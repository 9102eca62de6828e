"""Two hundred workers that sleep instead of train, on one PostgreSQL, directly and through PgBouncer: whether the
budget is used exactly and nothing fails, how many connections they hold, and what the server computes for a trial.

    python benchmarks/many_workers.py --workers 200 --minutes 10

Workers are forked from one process, since 200 of Python's would fill this machine's memory; each has connections of its
own. PostgreSQL is as its package starts it, but for max_connections (450) without the pooler: the default is 100.
"""

import argparse
import collections
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from faults import Plan, examine, make_spec
from free_worker import TimedObjective
from postgresql_servers import fresh_database, pgbouncer, postgresql

from hpo.errors import HpoError
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.search.worker import work

EPOCHS, EPOCH_SECS = 3, 10.0
POOL = 36


def fork_worker(url: str, study: Study, number: int, log: Path) -> int:
    """The process id of a worker, which runs until the budget is used."""
    if pid := os.fork():
        return pid
    code = 1
    with log.open("w", buffering=1) as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            engine = open_engine(parse_url(url))
            work(engine, [study.name], TimedObjective, f"worker-{number}", partial(print, flush=True))
            code = 0
        except HpoError as error:
            print(f"hpo: {error}")
        except BaseException as error:
            print(f"Traceback: {error!r}")
    os._exit(code)


@contextlib.contextmanager
def watching(server: sa.Engine, seen: collections.Counter[str]) -> Iterator[None]:
    """Notes the most connections that clients had at once."""
    ended = threading.Event()

    def look() -> None:
        with server.connect() as connection:
            while not ended.wait(1.0):
                query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                seen["connections"] = max(seen["connections"], int(connection.exec_driver_sql(query).scalar() or 0) - 1)
                connection.rollback()

    thread = threading.Thread(target=look)
    thread.start()
    yield
    ended.set()
    thread.join()


def cpu_secs(server: Any) -> float:
    """Of the server's processes, those that have ended included."""
    pid = int(Path(server.pgdata, "postmaster.pid").read_text().split()[0])
    own = psutil.Process(pid)
    times = [own.cpu_times(), *(child.cpu_times() for child in own.children(recursive=True))]
    return (
        sum(each.user + each.system for each in times) + own.cpu_times().children_user + own.cpu_times().children_system
    )


def run(server: Any, url: str, workers: int, budget: int, folder: Path) -> dict[str, Any]:
    """url: through a pooler or not; the server itself is asked directly."""
    engine = create_database(parse_url(url))
    study, _ = submit(engine, make_spec(Plan(budget=budget, epochs=EPOCHS)))
    engine.dispose()
    folder.mkdir()
    direct = sa.create_engine(parse_url(server.get_uri()))
    seen: collections.Counter[str] = collections.Counter()
    started, cpu = time.monotonic(), cpu_secs(server)
    with watching(direct, seen):
        pids = [fork_worker(url, study, number, folder / f"{number}.log") for number in range(workers)]
        codes = collections.Counter(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    seconds = time.monotonic() - started
    found = examine(engine, study, Plan(budget=budget, epochs=EPOCHS))
    logs = [file.read_text() for file in folder.iterdir()]
    lines = [line for log in logs for line in log.splitlines() if not line.startswith(("trial ", "baseline"))]
    return found | {
        "exit codes": dict(codes),
        "seconds": round(seconds),
        "ideal seconds": EPOCHS * EPOCH_SECS * budget / workers,
        "most connections of the server": seen["connections"],
        "milliseconds of the server's CPU time a trial": round(1000 * (cpu_secs(server) - cpu) / budget, 1),
        "other lines in logs": dict(collections.Counter(line[:120] for line in lines).most_common(8)),
        "interrupted": sum(log.count("interrupted") + log.count("dropped") for log in logs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--ways", nargs="+", choices=["direct", "pooled"], default=["direct", "pooled"])
    arguments = parser.parse_args()
    os.environ["EPOCH_SECS"] = str(EPOCH_SECS)
    budget = round(arguments.workers * arguments.minutes * 60 / (EPOCHS * EPOCH_SECS))
    for way in arguments.ways:
        with tempfile.TemporaryDirectory() as place, postgresql() as server:
            direct = sa.create_engine(parse_url(server.get_uri()), isolation_level="AUTOCOMMIT")
            if way == "direct":
                with direct.connect() as connection:
                    connection.exec_driver_sql("ALTER SYSTEM SET max_connections = 450")
                server.stop()
                server.start()
            direct.dispose()
            database = fresh_database(server.get_uri())
            with pgbouncer(database, POOL) if way == "pooled" else contextlib.nullcontext(database) as url:
                found = run(server, url, arguments.workers, budget, Path(place, "logs"))
            print(json.dumps({way: found, "workers": arguments.workers, "budget": budget}, indent=1), flush=True)
            if found["wrong"]:
                sys.exit(1)


if __name__ == "__main__":
    main()
