"""How long it takes to begin: `hpo --help`; `hpo worker` from its start to its first trial and to the first training
step, in a new study and in one of 10,000 finished trials.

    python benchmarks/startup.py --storage both --archive tiny-imagenet-50.zip --weights resnet18.safetensors

The first worker, which fits the head, and in a new study checks the weights against the network; then medians of the
repetitions. The images are decoded before, as on any machine that has worked on the study once. For comparison: what
plain Optuna's first `ask` takes in the large study.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
from large_study import fill
from postgresql_servers import fresh_database, postgresql
from real_objective import robust_accuracy
from time_to_target import HERE, STUDY, conditions, overrides

from hpo.search.sql.joining import check_fingerprints
from hpo.search.sql.storage import create_database
from hpo.search.sql.url import parse_url
from hpo.study_file.reading import load_spec
from hpo.vision.data.cache import prepare_images

WORKER = """
import os, sys, time
import hpo.cli.main
from hpo.objectives.robust_accuracy import RobustAccuracy

run = RobustAccuracy.run

def run_watched(self, trial):
    from hpo.vision.training.step import Runner
    step = Runner.run
    def first_step(*arguments):
        step(*arguments)
        print("stepped", time.time(), flush=True)
        os._exit(0)
    Runner.run = first_step
    return run(self, trial)

RobustAccuracy.run = run_watched
sys.argv = ["hpo", "worker", *sys.argv[1:]]
hpo.cli.main.main()
"""


def seconds_of_worker(url: str, study: str, folder: Path) -> dict[str, float]:
    """From the start of a process that does what `hpo worker` does, and ends after its first step."""
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, study],
        env=os.environ | {"HPO_STORAGE": url, "PYTHONUNBUFFERED": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = {}
    for line in process.stdout:
        if re.match(r"trial \d+ starts", line):
            found["trial"] = time.time() - started
        if line.startswith("stepped"):
            found["step"] = float(line.split()[1]) - started
    if process.wait() or len(found) < 2:
        raise SystemExit("the worker did not come to its first step")
    return found


def seconds_of_first_ask(url: str, study: str) -> float:
    storage = optuna.storages.RDBStorage(url)
    started = time.perf_counter()
    optuna.load_study(study_name=study, storage=storage, sampler=optuna.samplers.TPESampler()).ask()
    return time.perf_counter() - started


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--archive", type=os.path.abspath)
    parser.add_argument("--weights", type=os.path.abspath)
    parser.add_argument("--images-per-class", type=int, default=100)
    given = parser.parse_args()
    settings = overrides(given, seed=0, epochs=4)
    spec = load_spec(STUDY, settings)
    prepare_images(spec.data, spec.model.input_size)
    helped = []
    for _ in range(given.repetitions):
        started = time.perf_counter()
        subprocess.run([Path(sys.executable).parent / "hpo", "--help"], capture_output=True, check=True)
        helped.append({"seconds": time.perf_counter() - started})
    results = {"help": medians(helped)}
    print(f"hpo --help: {results['help']['seconds']} s", flush=True)
    for database in ["sqlite", "postgresql"] if given.storage == "both" else [given.storage]:
        with postgresql() if database == "postgresql" else contextlib.nullcontext() as server:  # noqa: SIM117
            with tempfile.TemporaryDirectory() as folder:
                url = fresh_database(server.get_uri()) if server else f"sqlite:///{folder}/hpo.db"
                engine = create_database(parse_url(url))
                for name, finished in (("new", 0), ("large", given.trials)):
                    study = fill(engine, name, finished + 100, finished, settings)
                    if finished:  # those who finished them left the study's fingerprints
                        objective = robust_accuracy(study.spec, None, Path(folder))
                        check_fingerprints(engine, study, objective.fingerprints(), objective.about())
                    first, *rows = [seconds_of_worker(url, name, Path(folder)) for _ in range(given.repetitions + 1)]
                    for which, seconds in (("first worker", medians([first])), ("others", medians(rows))):
                        results[f"{database}, {name} study, {which}"] = seconds
                        print(f"{database}, {name} study, {which}: {seconds}", flush=True)
                plain = round(seconds_of_first_ask(engine.url.render_as_string(hide_password=False), "large"), 2)
                results[f"{database}, plain Optuna's first ask"] = {"seconds": plain}
                print(f"{database}: plain Optuna's first ask in the large study: {plain} s", flush=True)
                engine.dispose()
    file = HERE / "results" / "startup.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"conditions": conditions(given), "seconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
