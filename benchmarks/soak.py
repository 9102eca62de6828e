"""A service that is left running: studies are submitted, renamed, deleted and extended at random while four workers
wait for work with `--forever`.

    python benchmarks/soak.py --storage both --minutes 15

At the end all that is left has to be exact, the workers' memory bounded, and their logs without a traceback.
"""

import argparse
import collections
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from lost_answers import SPEC
from postgresql_servers import fresh_database, postgresql

from hpo.errors import StudyError
from hpo.search.sql.counts import count
from hpo.search.sql.storage import create_database
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.sql.tables import trials
from hpo.search.sql.url import parse_url
from hpo.search.sql.whole_study import delete, rename
from hpo.study_file.reading import read_spec

HERE = Path(__file__).resolve().parent
WORKERS = 4
STUDIES = 30
BUDGET = 20
MIB = 2**20


def disturb(engine: sa.Engine, generator: random.Random, done: collections.Counter[str], numbers: list[int]) -> None:
    """One thing that somebody does to a study."""
    there = find_studies(engine)
    action = generator.choice(["submit", "submit", "rename", "delete", "extend", "nothing"])
    if action == "submit" and len(there) < STUDIES:
        numbers[0] += 1
        name = f"study-{generator.randrange(STUDIES)}" if generator.random() < 0.5 else f"new-{numbers[0]}"
        if name in [study.name for study in there]:
            return
        budget = generator.choice([BUDGET, BUDGET // 2])
        spec = SPEC | {"name": name, "seed": numbers[0], "budget": budget, "training": {"epochs": 4}}
        submit(engine, read_spec(spec))
    elif action != "submit" and there:
        study = generator.choice(there)
        try:
            match action:
                case "rename":
                    numbers[0] += 1
                    rename(engine, study.study_id, f"renamed-{numbers[0]}", lambda kept, spec: None)
                case "delete" if len(there) > STUDIES // 2:
                    delete(engine, study.study_id)
                case "extend" if study.budget < 3 * BUDGET:
                    extend(engine, study, study.budget + 5)
                case _:
                    return
        except StudyError:  # trials are running, or somebody was faster
            action = f"{action}, refused"
    done[action] += 1


def soak(url: str, minutes: float, folder: Path, seed: int) -> dict[str, Any]:
    engine = create_database(parse_url(url))
    environment = os.environ | {"HPO_STORAGE": url, "FOREVER": "1", "EPOCH_SECS": "0.01"}
    logs = [folder / f"worker-{number}.log" for number in range(WORKERS)]
    command = [sys.executable, str(HERE / "free_worker.py")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
    workers = [subprocess.Popen(command, env=environment, stdout=log.open("wb"), **pipes) for log in logs]
    generator, done, numbers = random.Random(seed), collections.Counter[str](), [0]
    memory: list[int] = []
    started = time.monotonic()
    while time.monotonic() - started < 60 * minutes:
        disturb(engine, generator, done, numbers)
        if time.monotonic() - started > 10 + 5 * len(memory):
            memory.append(max(psutil.Process(worker.pid).memory_info().rss for worker in workers) // MIB)
        time.sleep(0.2)
    wrong = [f"worker {number} ended" for number, worker in enumerate(workers) if worker.poll() is not None]
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and any(is_open(engine, study) for study in find_studies(engine)):
        time.sleep(0.5)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(timeout=20)
    for study in find_studies(engine):
        wrong += [f"{study.name}: {problem}" for problem in problems(engine, study)]
    text = "\n".join(log.read_text() for log in logs)
    wrong += ["a traceback"] if "Traceback" in text else []
    finished = sum(count(engine, study.study_id).finished for study in find_studies(engine))
    engine.dispose()
    return {
        "studies left": len({study.name for study in find_studies(engine)}),
        "their trials": finished,
        "trials that workers finished": len(re.findall(r"trial \d+ (?:complete|pruned)", text)),
        "done to studies": dict(done),
        "memory of the largest worker, MiB": {"after 10 s": memory[0], "most": max(memory), "last": memory[-1]},
        "wrong": wrong,
    }


def is_open(engine: sa.Engine, study: Study) -> bool:
    return count(engine, study.study_id).finished < study.budget


def problems(engine: sa.Engine, study: Study) -> list[str]:
    counts = count(engine, study.study_id)
    with engine.connect() as connection:
        numbers = connection.execute(sa.select(trials.c.number).where(trials.c.study_id == study.study_id)).scalars()
        given = sorted(numbers)
    found = []
    if (counts.finished, counts.running, counts.waiting) != (study.budget, 0, 0):
        found.append(f"budget {study.budget}, but {counts}")
    if given != list(range(len(given))):
        found.append(f"numbers {given}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    exact = True
    for kind in ("sqlite", "postgresql") if given.storage == "both" else (given.storage,):
        with tempfile.TemporaryDirectory() as folder, postgresql() as server:
            url = f"sqlite:///{folder}/hpo.db" if kind == "sqlite" else fresh_database(server.get_uri())
            found = soak(url, given.minutes, Path(folder), given.seed)
        exact = exact and not found["wrong"]
        print(f"{kind}: {given.minutes:g} minutes", flush=True)
        for name, value in found.items():
            print(f"  {name}: {value}", flush=True)
    sys.exit(not exact)


if __name__ == "__main__":
    main()
