"""What exactness costs: trials a second of workers with an objective that costs nothing, of hpo and of plain
`study.optimize`, side by side on the same database, in the same run, with the same space, sampler, pruner and reports.

    python benchmarks/coordination.py --storage both --workers 4 --budget 400
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import sqlalchemy as sa
from faults import HERE, Plan, make_spec
from free_objective import FreeObjective
from postgresql_servers import fresh_database, postgresql

from hpo.doors.objective import Trial
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import studies, trials
from hpo.search.sql.url import parse_url
from hpo.study_file.reading import read_spec
from hpo.study_file.spec import Spec

EPOCHS = 3


def plain_worker(url: str, name: str, spec: Spec) -> None:
    """What a competent user writes: suggest, report every epoch, ask the pruner, keep two accuracies."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=name,
        storage=url,
        sampler=optuna.samplers.TPESampler() if spec.sampler.name == "tpe" else optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.SuccessiveHalvingPruner() if spec.pruner.name == "asha" else optuna.pruners.NopPruner(),
    )
    measure = FreeObjective(spec)

    def objective(trial: optuna.Trial) -> float:
        params = {
            "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
            "frozen_layers": trial.suggest_int("frozen_layers", 0, 4),
            "augmentation_strength": trial.suggest_float("augmentation_strength", 0.0, 1.0),
        }
        trial.set_user_attr("worker", str(os.getpid()))
        for measured in measure.run(Trial(trial.number, params, seed=trial.number, steps=spec.steps)):
            time.sleep(float(os.environ.get("EPOCH_SECS", "0")))
            trial.report(measured.score, measured.step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("clean_accuracy", measured.attributes["clean_accuracy"])
        trial.set_user_attr("perturbed_accuracy", measured.attributes["mean_perturbed_accuracy"])
        return measured.score

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(spec.budget, states=states)])


def run(kind: str, url: str, spec: Spec, workers: int) -> tuple[int, float]:
    """(finished trials, trials a second from the first start to the last end) of one study."""
    engine = create_database(parse_url(url))
    full_url = engine.url.render_as_string(hide_password=False)
    if kind == "hpo":
        submit(engine, spec)
        command = [sys.executable, str(HERE / "free_worker.py"), spec.name]
    else:
        optuna.create_study(study_name=spec.name, storage=full_url, direction="maximize")
        command = [sys.executable, __file__, "--plain-worker", spec.name, spec.model_dump_json()]
    environment = os.environ | {"HPO_STORAGE": full_url} | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{kind}: workers ended with {codes}")
    query = (
        sa.select(sa.func.count(), sa.func.min(trials.c.datetime_start), sa.func.max(trials.c.datetime_complete))
        .join(studies, studies.c.study_id == trials.c.study_id)
        .where(studies.c.study_name == spec.name, trials.c.state.in_(["COMPLETE", "PRUNED"]))
    )
    with engine.connect() as connection:
        finished, first, last = connection.execute(query).one()
    engine.dispose()
    return finished, finished / (last - first).total_seconds()


def main() -> None:
    if "--plain-worker" in sys.argv:
        name, spec_json = sys.argv[2:]
        plain_worker(os.environ["HPO_STORAGE"], name, read_spec(json.loads(spec_json)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--sampler", choices=["tpe", "random"], default="tpe")
    parser.add_argument("--pruner", choices=["asha", "none"], default="asha")
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if given.storage == "both" else [given.storage]
    for database in kinds:
        rates: dict[str, list[float]] = {"hpo": [], "plain": []}
        with postgresql() if database == "postgresql" else contextlib.nullcontext() as server:
            for repetition in range(given.repetitions):
                for kind in ("plain", "hpo") if repetition % 2 else ("hpo", "plain"):
                    with tempfile.TemporaryDirectory() as folder:
                        url = fresh_database(server.get_uri()) if server else f"sqlite:///{Path(folder)}/hpo.db"
                        base = make_spec(Plan(budget=given.budget, epochs=EPOCHS, pruner=given.pruner), kind)
                        spec = read_spec(base.model_dump() | {"sampler": {"name": given.sampler}})
                        finished, rate = run(kind, url, spec, given.workers)
                    rates[kind].append(rate)
                    print(f"{database} {kind}: {finished} finished, {rate:.1f} trials a second", flush=True)
        ratio = statistics.median(rates["hpo"]) / statistics.median(rates["plain"])
        print(f"{database}: hpo {ratio:.2f} times plain (medians of {given.repetitions})", flush=True)


if __name__ == "__main__":
    main()
