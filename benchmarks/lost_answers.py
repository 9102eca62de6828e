"""Whether a study stays exact when the database's answers to commits are lost: the change took place, and the worker
that made it is told that the connection broke.

    python benchmarks/lost_answers.py --storage both --repetitions 50

Four workers share a study of trials that cost nothing, paused and promoted by ASHA; after every commit of one of the
functions that pause, promote, claim, end or give back a trial the answer is lost, each time with a given probability.
"""

import argparse
import collections
import random
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import sqlalchemy as sa
from free_objective import FreeObjective
from postgresql_servers import fresh_database, postgresql

from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Trial
from hpo.search.sql import outages
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trial_intermediate_values, trials
from hpo.search.sql.url import parse_url
from hpo.search.worker import work
from hpo.study_file.reading import read_spec

FUNCTIONS = ("pause", "promote", "claim", "finish", "give_back")
FAILING_SHARE = 0.3
"""Of the trials, where the function is give_back."""
SPEC = {
    "name": "study",
    "data": {"name": "digits"},
    "model": {"weights": "none", "input_size": 32},
    "search": {"learning_rate": {"low": 1e-3, "high": 1e-1}, "augmentation_strength": {"low": 0.0, "high": 1.0}},
    "objective": {"clean": 0.5, "perturbations": [{"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}]},
    "sampler": {"name": "random"},
    "max_failed_share": 1.0,
    "pruner": {"name": "asha", "reduction_factor": 2, "min_epochs": 1},
}


def lose_answers(engine: sa.Engine, function: str, probability: float, generator: random.Random) -> list[int]:
    """From now on, after commits of this function; [how many were lost]."""
    commit, lost = engine.dialect.do_commit, [0]

    def do_commit(connection: Any) -> None:
        commit(connection)
        frame: Any = sys._getframe(1)
        while frame is not None and not (frame.f_code.co_name == function and "hpo/search" in frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and generator.random() < probability:
            lost[0] += 1
            if engine.dialect.name == "postgresql":
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
    return lost


def faults_after(
    url: str, function: str, seed: int, budget: int = 16, probability: float = 0.5
) -> tuple[int, list[str]]:
    """(answers lost, what is wrong with the study afterwards)."""
    outages.FIRST_WAIT_SECS = 0.01
    spec = read_spec(SPEC | {"seed": seed, "budget": budget, "training": {"epochs": 8}})
    measured: collections.Counter[tuple[int, int]] = collections.Counter()
    failing: list[int] = []
    lock = threading.Lock()

    class Resuming(FreeObjective):
        """Goes on from where a trial was left, and counts what it measures."""

        def run(self, trial: Trial) -> Iterator[Measurement]:  # type: ignore[override]
            if function == "give_back" and random.Random(f"{seed}/{trial.number}").random() < FAILING_SHARE:
                with lock:
                    failing.append(trial.number)
                raise ValueError("a bug")
            done = int(trial.checkpoint or b"0")
            for measurement in super().run(trial):
                if measurement.step > done:
                    with lock:
                        measured[trial.number, measurement.step] += 1
                    yield replace(measurement, checkpoint=str(measurement.step).encode())

    engines = [create_database(parse_url(url)) for _ in range(4)]
    submit(engines[0], spec)
    generator = random.Random(f"{function}/{seed}")
    lost = [lose_answers(engine, function, probability, generator) for engine in engines]
    failures: list[str] = []
    folder = tempfile.TemporaryDirectory()

    def run(number: int) -> None:
        try:
            store = Artifacts(folder.name)
            work(engines[number], ["study"], Resuming, f"worker-{number}", lambda text: None, artifacts=store)
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder.cleanup()
    with engines[0].connect() as connection:
        states = collections.Counter(connection.execute(sa.select(trials.c.state)).scalars())
        steps = trial_intermediate_values.c
        kept = connection.execute(
            sa.select(trials.c.number, steps.step).join(trials, trials.c.trial_id == steps.trial_id)
        ).all()
    for engine in engines:
        engine.dispose()
    if states["COMPLETE"] + states["PRUNED"] != budget or states["WAITING"] or states["RUNNING"]:
        failures.append(f"not {budget} finished trials, but {dict(states)}")
    if states["FAIL"] != len(failing):
        failures.append(f"{states['FAIL']} trials failed, not {len(failing)}")
    if twice := [step for step, times in measured.items() if times > 1]:
        failures.append(f"(trial, epoch) measured twice: {twice}")
    if set(map(tuple, kept)) != set(measured):
        failures.append("what was measured is not what is kept")
    return sum(map(sum, lost)), failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--repetitions", type=int, default=50)
    given = parser.parse_args()
    exact = True
    for kind in ("sqlite", "postgresql") if given.storage == "both" else (given.storage,):
        for function in FUNCTIONS:
            lost, wrong = 0, []
            for seed in range(given.repetitions):
                with tempfile.TemporaryDirectory() as folder:
                    if kind == "sqlite":
                        answers, failures = faults_after(f"sqlite:///{folder}/hpo.db", function, seed)
                    else:
                        answers, failures = faults_after(fresh_database(server()), function, seed)
                lost += answers
                wrong += [f"seed {seed}: {failure}" for failure in failures]
            exact = exact and not wrong
            print(
                f"{kind}, {function}: {given.repetitions} studies, {lost} answers lost, {wrong or 'exact'}", flush=True
            )
    sys.exit(not exact)


_servers: list[Any] = []


def server() -> str:
    """The URL of a PostgreSQL server that lives as long as this process."""
    if not _servers:
        _servers.append(postgresql())
        _servers.append(_servers[0].__enter__().get_uri())
    return str(_servers[1])


if __name__ == "__main__":
    try:
        main()
    finally:
        if _servers:
            _servers[0].__exit__(None, None, None)
