"""Kills workers with SIGKILL at random moments and at chosen points, and stops PostgreSQL, while a study is worked on;
then looks whether the budget was used exactly.

    python benchmarks/faults.py --storage both --repetitions 10
    python benchmarks/faults.py --storage postgresql --outages 2 --outage-secs 60
"""

import argparse
import collections
import contextlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from free_worker import take_ticket
from postgresql_servers import fresh_database, pgbouncer, postgresql

from hpo.search.sql.counts import count
from hpo.search.sql.dead_workers import give_back_trials_of
from hpo.search.sql.outages import is_outage
from hpo.search.sql.storage import create_database
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.study_file.reading import read_spec
from hpo.study_file.spec import Spec
from hpo.workers.launcher import Launch
from hpo.workers.local import LocalLauncher

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What is done to a study. outage_secs: how long PostgreSQL is away, `outages` times; real: with the real worker
    and objective, on digits, and a supervisor that buries the dead.
    """

    budget: int = 200
    workers: int = 6
    kills: int = 60
    epochs: int = 3
    epoch_secs: float = 0.1
    heartbeat_secs: float = 0.5
    grace_secs: float = 2.0
    outages: int = 0
    outage_secs: float = 60.0
    pruner: str = "none"
    real: bool = False
    max_parallel: int | None = None


def make_spec(plan: Plan, name: str = "faults") -> Spec:
    return read_spec(
        {
            "name": name,
            "budget": plan.budget,
            "max_parallel": plan.max_parallel,
            "data": {"name": "digits", "images_per_class": 40},
            "model": {"weights": "none", "input_size": 32},
            "training": {"epochs": plan.epochs, "horizontal_flip": False},
            "search": {
                "batch_size": {"choices": [16, 32, 64]},
                "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                "frozen_layers": {"low": 0, "high": 4},
                "augmentation_strength": {"low": 0.0, "high": 1.0},
            },
            "objective": {"clean": 0.5, "perturbations": [{"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}]},
            "sampler": {"name": "random"},
            "pruner": {"name": plan.pruner},
        }
    )


def run_with_faults(url: str, plan: Plan, folder: Path, server: Any = None) -> dict[str, Any]:
    """Works on a study while things go wrong; what was found at its end."""
    engine = create_database(parse_url(url))
    study, _ = submit(engine, make_spec(plan))
    tickets = folder / "tickets"
    tickets.mkdir(parents=True)
    environment = {
        "EPOCH_SECS": str(plan.epoch_secs),
        "HEARTBEAT_SECS": str(plan.heartbeat_secs),
        "GRACE_SECS": str(plan.grace_secs),
        "KILLS": f"{tickets}:{plan.kills}",
        "HPO_ARTIFACTS": str(folder / "artifacts"),
    }
    program = ["-m", "hpo", "worker", "--supervised"] if plan.real else [str(HERE / "free_worker.py")]
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, *program]
    said: list[str] = []
    started = time.monotonic()
    # for the free objective nobody gives trials back: heartbeats must reveal dead workers
    on_death = partial(give_back_trials_of, engine) if plan.real else lambda name, out_of_memory: True
    launcher = LocalLauncher(command)
    try:
        launcher.start(Launch([study.name], plan.workers, url, folder / "logs", on_death, said.append))
        most_at_once = _inject(launcher, engine, study, plan, tickets, server)
        seconds = time.monotonic() - started
    finally:
        launcher.stop()
    time.sleep(3 * plan.heartbeat_secs)
    found = examine(engine, study, plan)
    logs = "\n".join(worker.log.read_text() for worker in launcher.workers)
    if plan.real:
        found["left in the artifact store"] = [path.name for path in (folder / "artifacts").rglob("*.checkpoint")]
    if plan.max_parallel is not None and most_at_once > plan.max_parallel:
        found["wrong"].append(f"{most_at_once} trials ran at once")
    found |= {
        "kills": sum("killed by SIGKILL" in line for line in said),
        "at chosen points": logs.count("killed in "),
        "where": dict(collections.Counter(line.split()[2] for line in logs.splitlines() if line.startswith("killed"))),
        "tracebacks": logs.count("Traceback"),
        "started in vain while the database was away": sum("with exit code 3" in line for line in said),
        "other deaths": [line for line in said if "by SIGKILL" not in line and "with exit code 3" not in line],
        "seconds": round(seconds, 1),
    }
    engine.dispose()
    return found


def _inject(launcher: LocalLauncher, engine: sa.Engine, study: Study, plan: Plan, tickets: Path, server: Any) -> int:
    """Random kills and outages, spread over the run by how many trials are finished. The most trials that were seen
    running at once.
    """
    outages = [plan.budget * (number + 1) // (plan.outages + 1) for number in range(plan.outages)]
    patience_secs = 60 + plan.outage_secs + 2 * plan.grace_secs
    most, progressed_at, most_at_once = 0, time.monotonic(), 0
    while launcher.tend():
        finished, running = _progress(engine, study)
        most_at_once = max(most_at_once, running)
        if finished > most:
            most, progressed_at = finished, time.monotonic()
        if time.monotonic() - progressed_at > patience_secs:
            return most_at_once  # a trial was lost: examine() says what is missing
        if outages and finished >= outages[0]:
            outages.pop(0)
            server.stop()
            time.sleep(plan.outage_secs)
            server.start()
        killed = len(list(tickets.iterdir()))
        alive = [worker.process for worker in launcher.workers if worker.process and worker.process.poll() is None]
        due = plan.kills * finished / (0.9 * plan.budget)
        if alive and killed < due and take_ticket(str(tickets), str(plan.kills)):
            random.choice(alive).kill()
        time.sleep(random.random() * 0.1)
    return most_at_once


def _progress(engine: sa.Engine, study: Study) -> tuple[int, int]:
    """How many trials are finished, and how many run."""
    try:
        counts = count(engine, study.study_id)
    except sa.exc.DBAPIError as error:
        if is_outage(error):
            return 0, 0
        raise
    return counts.finished, counts.running


def examine(engine: sa.Engine, study: Study, plan: Plan) -> dict[str, Any]:
    """Reads the study through Optuna's own API; what is wrong with it, if anything."""
    storage = optuna.storages.RDBStorage(engine.url.render_as_string(hide_password=False))
    trials = optuna.load_study(study_name=study.name, storage=storage).get_trials(deepcopy=False)
    storage.remove_session()
    storage.engine.dispose()
    states = collections.Counter(trial.state.name for trial in trials)
    wrong = []
    if states["COMPLETE"] + states["PRUNED"] != plan.budget:
        wrong.append(f"{states['COMPLETE'] + states['PRUNED']} finished, not {plan.budget}")
    wrong += [f"trial {t.number} is {t.state.name}" for t in trials if t.state.name in ("RUNNING", "WAITING")]
    if [trial.number for trial in trials] != list(range(len(trials))):
        wrong.append("trial numbers are not 0, 1, 2 …")
    for trial in trials:
        if trial.state.name == "COMPLETE" and sorted(trial.intermediate_values) != list(range(1, plan.epochs + 1)):
            wrong.append(f"trial {trial.number} has values for epochs {sorted(trial.intermediate_values)}")
        if trial.state.name == "PRUNED" and not trial.intermediate_values:
            wrong.append(f"trial {trial.number} was pruned without a value")
    ends = collections.Counter(
        tuple(sorted(trial.params.items())) for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")
    )
    wrong += [f"{count} finished trials with {dict(params)}" for params, count in ends.items() if count > 1]
    resumed = sum("resumed_after_epoch" in trial.user_attrs for trial in trials)
    return {"states": dict(states), "wrong": wrong, "resumed from a checkpoint": resumed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--outages", type=int, default=0)
    parser.add_argument("--outage-secs", type=float, default=60.0)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pruner", choices=["none", "asha"], default="none")
    parser.add_argument("--real", action="store_true", help="the real objective, on digits")
    parser.add_argument("--epoch-secs", type=float, default=0.1)
    parser.add_argument("--max-parallel", type=int)
    parser.add_argument("--heartbeat-secs", type=float, default=0.5)
    parser.add_argument("--grace-secs", type=float, default=2.0)
    parser.add_argument("--pooled", action="store_true", help="through PgBouncer in transaction mode; PostgreSQL alone")
    given = vars(parser.parse_args())
    pooled = given.pop("pooled")
    kinds = ["sqlite", "postgresql"] if given["storage"] == "both" else [given["storage"]]
    repetitions = given["repetitions"]
    plan = Plan(**{key: value for key, value in given.items() if key not in ("storage", "repetitions")})
    print(plan, flush=True)
    exact = 0
    for kind in kinds:
        with postgresql() if kind == "postgresql" else contextlib.nullcontext() as server:
            for repetition in range(repetitions):
                random.seed(repetition)
                with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                    url = fresh_database(server.get_uri()) if server else f"sqlite:///{folder}/hpo.db"
                    if server and pooled:
                        url = stack.enter_context(pgbouncer(url))
                    found = run_with_faults(url, plan, Path(folder), server)
                exact += not (found["wrong"] or found["tracebacks"] or found["other deaths"])
                print(f"{kind} {repetition}: {found}", flush=True)
    print(f"{exact} of {len(kinds) * repetitions} exact")
    sys.exit(exact != len(kinds) * repetitions)


if __name__ == "__main__":
    main()
