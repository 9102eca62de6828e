"""How fast the database answers on a large study: `hpo top` and `hpo status` end to end, the query alone, and what a
user of Optuna's API would write instead, side by side in one run on the same database.

    python benchmarks/queries.py --storage both --trials 10000
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy as sa
from large_study import fill
from postgresql_servers import fresh_database, postgresql

from hpo.search.sql.queries import best_trials
from hpo.search.sql.status import status
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.url import parse_url

REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--trials", type=int, default=10_000)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.storage != "postgresql":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            measure("sqlite", f"sqlite:///{folder}/hpo.db", arguments.trials)
        if arguments.storage != "sqlite":
            server = stack.enter_context(postgresql())
            measure("postgresql", fresh_database(server.get_uri()), arguments.trials)


def measure(kind: str, url: str, count: int) -> None:
    engine = create_database(parse_url(url))
    began = time.perf_counter()
    study = fill(engine, "large", count)
    print(f"{kind}: {count} finished trials written in {time.perf_counter() - began:.1f} s")
    if kind == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))  # autovacuum does so within a minute
    fresh = open_engine(parse_url(url))
    report(kind, "hpo's query for the top 10", lambda: best_trials(fresh, "large", 10))
    report(
        kind,
        "hpo's query with --where and --sort",
        lambda: best_trials(fresh, "large", 10, "batch_size>64", "clean_accuracy"),
    )
    report(kind, "hpo's queries for the status", lambda: status(fresh, study))
    for command in (["top", "large", "-n", "10"], ["best", "large"], ["status"], ["status", "large"]):
        report(kind, f"hpo {' '.join(command)}, end to end", lambda command=command: run(command, url))
    ours = seconds(lambda: best_trials(fresh, "large", 10))
    theirs = seconds(lambda: with_optuna(url), 2)
    print(f"{kind}: study.trials sorted in Python: {theirs:.2f} s, {theirs / ours:.0f} times hpo's query")
    assert [trial.number for trial in best_trials(fresh, "large", 10)] == with_optuna(url)


def with_optuna(url: str) -> list[int]:
    """The ten best feasible trials, as one would write it with Optuna, in a fresh process's state."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    found = optuna.load_study(study_name="large", storage=storage).trials
    complete = [t for t in found if t.state.name == "COMPLETE" and all(v <= 0 for v in t.constraints.values())]
    storage.remove_session()
    return [trial.number for trial in sorted(complete, key=lambda trial: (-trial.value, trial.number))[:10]]


def run(command: list[str], url: str) -> None:
    environment = os.environ | {"HPO_STORAGE": url}
    subprocess.run([sys.executable, "-m", "hpo", *command], env=environment, capture_output=True, check=True)


def report(kind: str, what: str, operation: Callable[[], Any]) -> None:
    took = seconds(operation)
    print(f"{kind}: {what}: {1000 * took:.0f} ms")


def seconds(operation: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        operation()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
