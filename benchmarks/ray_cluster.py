"""Workers on a Ray cluster of three nodes, all on this machine: a node killed in the middle, a node added, the real
objective, and the same trials by Ray Tune.

    python benchmarks/ray_cluster.py killed added digits
    pip install "ray[tune]"; python benchmarks/ray_cluster.py tune

`killed`: 100 trivial trials on PostgreSQL; a node and all its processes get SIGKILL in the middle. `added`: how long
until a node that joins runs a trial. `digits`: the reports of eight trials, beside those of local workers. `tune`:
trials an hour of one second each, of hpo and of Ray Tune with its Optuna search, on the same cluster, and again with a
node killed in the middle.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from postgresql_servers import fresh_database, postgresql
from ray.cluster_utils import Cluster

from hpo.search.sql.counts import count
from hpo.search.sql.storage import open_engine
from hpo.search.sql.studies import find_studies
from hpo.search.sql.url import parse_url

HERE = Path(__file__).resolve().parent
CPUS = 2
SLEEPING = """
import time
import hpo

class Sleeping(hpo.Objective):
    class Settings(hpo.Section):
        seconds: float = 1.0

    def __init__(self, settings, context):
        self.seconds = settings.seconds

    def fingerprints(self):
        return {"images": "none"}

    def run(self, trial):
        for step in range(1, trial.steps + 1):
            time.sleep(self.seconds / trial.steps)
            yield hpo.Measurement(step=step, score=trial.params["x"] * step, parts={"half": 0.5}, checkpoint=b"x")
"""
STUDY = """
name = "{name}"
budget = {budget}
[objective]
name = "sleeping"
seconds = {seconds}
steps = 2
[search]
x = {{ low = 0.0, high = 1.0 }}
[sampler]
name = "{sampler}"
[pruner]
name = "none"
"""


def install(folder: Path) -> None:
    """The objective, as pip leaves a package."""
    information = folder / "sleeping-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "sleeping.py").write_text(SLEEPING)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeping\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[hpo.objectives]\nsleeping = sleeping:Sleeping\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(HERE.parent)])


@contextlib.contextmanager
def three_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CPUS)
        yield cluster
    finally:
        cluster.shutdown()


def kill_a_node(cluster: Cluster) -> int:
    """With everything that it runs, as when its power fails; how many workers it had."""
    node = next(iter(cluster.worker_nodes))
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    below = raylet.children(recursive=True)
    workers = sum("worker" in process.cmdline() and "hpo" in process.cmdline() for process in below)
    for process in [raylet, *below]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.remove_node(node, allow_graceful=False)
    return workers


def hpo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([sys.executable, "-m", "hpo", *arguments], capture_output=True, text=True, **options)
    if ran.returncode:
        raise RuntimeError(f"hpo {' '.join(arguments)}: {ran.stdout}{ran.stderr}")
    return ran


def status(name: str) -> dict[str, int]:
    engine = open_engine(parse_url(os.environ["HPO_STORAGE"]))
    try:
        (study,) = find_studies(engine, [name])
        counts = count(engine, study.study_id)
        return asdict(counts) | {"finished": counts.finished}
    finally:
        engine.dispose()


def submit(folder: Path, **settings: Any) -> str:
    (folder / "study.toml").write_text(STUDY.format(**{"sampler": "random", "seconds": 0.5, **settings}))
    hpo("submit", str(folder / "study.toml"))
    return str(settings["name"])


@contextlib.contextmanager
def launched(name: str, address: str, log: Path, workers: str = "auto") -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "hpo", "launch", name, "--on", "ray", "--address", address, "--workers", workers]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
            print(log.read_text(), file=sys.stderr)


def wait_for(condition: Any, secs: float = 300) -> float:
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > secs:
            raise TimeoutError
        time.sleep(0.3)
    return time.monotonic() - started


def killed(folder: Path) -> dict[str, Any]:
    name = submit(folder, name="killed", budget=100)
    with three_nodes() as cluster, launched(name, cluster.address, folder / "killed.log") as launch:
        wait_for(lambda: status(name)["finished"] >= 40)
        lost = kill_a_node(cluster)
        code = launch.wait(600)
    found = status(name)
    return {"exit code": code, "workers lost": lost} | found


def added(folder: Path) -> dict[str, Any]:
    name = submit(folder, name="added", budget=1000)
    with three_nodes() as cluster, launched(name, cluster.address, folder / "added.log"):
        wait_for(lambda: status(name)["running"] == 3 * CPUS)
        cluster.add_node(num_cpus=CPUS)
        secs = wait_for(lambda: status(name)["running"] == 4 * CPUS)
    return {"seconds until its workers ran trials": round(secs, 1)}


def digits(folder: Path) -> dict[str, Any]:
    """Two studies that differ in name only: one by local workers, one on the cluster."""
    found = {}
    for name in ("local", "cluster"):
        settings = ["--set", f'name="{name}"', "--set", "budget=8", "--set", "sampler.name=random"]
        hpo("submit", str(HERE.parent / "studies" / "quickstart.toml"), *settings)
        if name == "local":
            hpo("launch", name, "--workers", "2")
        else:
            with three_nodes() as cluster, launched(name, cluster.address, folder / "digits.log", "4") as launch:
                launch.wait(900)
        trials = json.loads(hpo("top", name, "-n", "100", "--json").stdout)
        compared = ("number", "score", "clean_accuracy", "perturbed_accuracy", "params")
        found[name] = sorted(([trial[key] for key in compared] for trial in trials), key=str)
    return {"trials": len(found["local"]), "equal to the digit": found["local"] == found["cluster"]}


def tune(folder: Path) -> dict[str, Any]:
    """One-second trials on the same three nodes: hpo and Ray Tune in turn, first undisturbed, then with a node killed
    when a third of the time of the first run has passed.
    """
    trials, kill_at = 240, 25.0
    found: dict[str, Any] = {}
    for disturbed in (False, True):
        for system in ("hpo", "Ray Tune", "Ray Tune, max_failures = 3"):
            with three_nodes() as cluster:
                started = time.monotonic()
                if system == "hpo":
                    name = submit(folder, name=f"tune-{disturbed}", budget=trials, seconds=1.0, sampler="tpe")
                    command = [sys.executable, "-m", "hpo", "launch", name, "--on", "ray", "--workers", "auto"]
                    command += ["--address", cluster.address]
                else:
                    failures = "3" if "max" in system else "0"
                    peer = HERE / "peers" / "ray_tune_sleeping.py"
                    command = [sys.executable, str(peer), cluster.address, str(trials), failures, str(folder / system)]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                if disturbed:
                    time.sleep(kill_at)
                    kill_a_node(cluster)
                said, _ = process.communicate()
                seconds = time.monotonic() - started
            ended = status(name) if system == "hpo" else json.loads(said.splitlines()[-1])
            row = {"seconds": round(seconds, 1), "trials an hour": round(trials / seconds * 3600), "ended": ended}
            found[f"{system}{', a node killed' if disturbed else ''}"] = row
            print(json.dumps(row), file=sys.stderr)
    return found


STAGES = {"killed": killed, "added": added, "digits": digits, "tune": tune}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    stages = parser.parse_args().stages
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place, postgresql() as server:
        folder = Path(place)
        install(folder / "packages")
        os.environ["HPO_STORAGE"] = fresh_database(server.get_uri())
        os.environ["HPO_ARTIFACTS"] = str(folder / "artifacts")
        for stage in stages:
            print(json.dumps({stage: STAGES[stage](folder)}), flush=True)


if __name__ == "__main__":
    main()
