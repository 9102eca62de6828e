"""What coordination costs: worker processes that sleep 10 seconds a trial instead of training, on one PostgreSQL, of
hpo and of plain `study.optimize` in turn; and how many real trials an hour 1 and 2 workers do here.

    python benchmarks/scaling.py --workers 1 4 16 64
    python benchmarks/scaling.py --real --archive tiny-imagenet-50.zip --weights resnet18.safetensors

The share that is lost: of each worker's time from its first trial's start to its last one's end, what is not sleep.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from coordination import HERE
from faults import Plan, make_spec
from postgresql_servers import fresh_database, postgresql
from time_to_target import STUDY, conditions, overrides

from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trial_user_attributes, trials
from hpo.search.sql.url import parse_url
from hpo.study_file.reading import load_spec, read_spec

RESULTS = HERE / "results"
SLEEP_SECS = 10.0
STARTUP_SECS_A_WORKER = 1.5
"""Of one core, for Python and its imports: time to be allowed for before the last worker has begun."""


def sleep_with(kind: str, server: str, workers: int, seconds: float) -> dict[str, Any]:
    """Lets so many workers sleep through trials, then counts."""
    url = fresh_database(server)
    engine = create_database(parse_url(url))
    budget = int(workers * (seconds / SLEEP_SECS + 10)) + 10
    spec = make_spec(Plan(budget=budget, epochs=1, pruner="asha"), kind)
    spec = read_spec(spec.model_dump() | {"sampler": {"name": "tpe"}})
    if kind == "hpo":
        submit(engine, spec)
        command = [sys.executable, str(HERE / "free_worker.py"), spec.name]
    else:
        optuna.create_study(study_name=spec.name, storage=url, direction="maximize")
        command = [sys.executable, str(HERE / "coordination.py"), "--plain-worker", spec.name, spec.model_dump_json()]
    environment = os.environ | {"HPO_STORAGE": url, "EPOCH_SECS": str(SLEEP_SECS), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(workers)
    ]
    time.sleep(seconds + workers * STARTUP_SECS_A_WORKER / 2 + 5)
    found = lost_share(engine, kind)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    engine.dispose()
    return {"system": kind, "workers": workers, **found}


def lost_share(engine: sa.Engine, kind: str) -> dict[str, Any]:
    worker = trial_user_attributes
    query = (
        sa.select(worker.c.value_json, trials.c.datetime_start, trials.c.datetime_complete)
        .join(worker, (worker.c.trial_id == trials.c.trial_id) & (worker.c.key == "worker"))
        .where(trials.c.state.in_(["COMPLETE", "PRUNED"]))
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    by_worker: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for name, start, end in rows:
        by_worker[name].append((start, end))
    whole = sum((max(e for _, e in spans) - min(s for s, _ in spans)).total_seconds() for spans in by_worker.values())
    slept = SLEEP_SECS * len(rows)
    return {"seen": len(by_worker), "trials": len(rows), "lost": 1 - slept / whole}


def work_for_real(given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Trials an hour of so many workers that train, the same trials each time: random search, nothing pruned."""
    settings = [
        *overrides(given, seed=0, epochs=1),
        f"budget={given.trials}",
        "sampler.name=random",
        "pruner.name=none",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "hpo"), "run", str(STUDY), "--workers", str(workers)]
        for setting in settings:
            command += ["--set", setting]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        engine = sa.create_engine(f"sqlite:///{folder}/hpo.db")
        query = sa.select(sa.func.min(trials.c.datetime_start), sa.func.max(trials.c.datetime_complete))
        with engine.connect() as connection:
            first, last = connection.execute(query.where(trials.c.state == "COMPLETE")).one()
    return {"workers": workers, "trials_per_hour": 3600 * given.trials / (last - first).total_seconds()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--systems", nargs="+", default=["plain", "hpo"])
    parser.add_argument("--seconds", type=float, default=120, help="how long, after the last worker has begun")
    parser.add_argument("--real", action="store_true", help="trials that train, with 1 and 2 workers")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--archive", type=os.path.abspath)
    parser.add_argument("--weights", type=os.path.abspath)
    parser.add_argument("--images-per-class", type=int, default=100)
    given = parser.parse_args()
    results = []
    if given.real:
        load_spec(STUDY)
        for workers in (1, 2):
            results.append(work_for_real(given, workers))
            print(f"{workers} workers: {results[-1]['trials_per_hour']:.0f} trials an hour", flush=True)
    else:
        with postgresql() as server:
            for workers in given.workers:
                for kind in given.systems:
                    found = sleep_with(kind, server.get_uri(), workers, given.seconds)
                    results.append(found)
                    print(
                        f"{kind:6} {workers:3} workers: {found['trials']} trials, {found['lost']:.1%} of the time lost",
                        flush=True,
                    )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / ("scaling_real.json" if given.real else "scaling.json")
    file.write_text(json.dumps({"conditions": conditions(given), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
