r"""Wall-clock time until a target score is first reached, and the score over time: hpo and its peers on the same
images, weights, search space, objective and cores.

    bash benchmarks/peers/install.sh ~/peers
    python benchmarks/time_to_target.py run --systems plain hpo --seeds 0 1 2 3 4 --peers ~/peers \
        --archive tiny-imagenet-50.zip --weights resnet18.safetensors
    python benchmarks/time_to_target.py report

One run after the other, each ended after 20 minutes; each leaves one JSON file with every report (wall-clock time,
trial, epoch, score) and its conditions in `results/time_to_target/`, in the folder of its kind of machine: CPUs that
multiply bf16 and others do not compare. `report` makes a table and a plot of the runs of this machine's kind. Whatever
a trial reports on all the tuning images counts, for every system alike. The seed draws the training
and tuning images, and seeds the search and the training. Without --archive: handwritten digits.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image
from time_to_target_report import RESULTS, SYSTEMS, print_and_draw

from hpo.search.sql.tables import trial_intermediate_values, trial_params, trials
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec

HERE = Path(__file__).resolve().parent
STUDY = HERE / "time_to_target.toml"
PEERS = {"plain": "plain_optuna.py", "ray": "ray_tune.py", "syne-tune": "syne_tune_asha.py"}
STOP_SECS = 10.0
POLL_SECS = 0.2
NO_CONDITIONS = {"does", "systems", "seeds", "again", "peers"}
"""Options that say nothing of how one run was made."""
Report = dict[str, Any]


def overrides(given: argparse.Namespace, seed: int, epochs: int) -> list[str]:
    settings = [f"seed={seed}", f"training.epochs={epochs}"]
    if given.archive:
        settings += [f"data.archive={given.archive}", f"data.images_per_class={given.images_per_class}"]
    else:
        settings += ["data.name=digits", "model.input_size=32", "training.horizontal_flip=false"]
    return [*settings, f"model.weights={given.weights or 'none'}"]


def export_images(spec: Spec, folder: Path, scored: str = "tuning") -> None:
    """The study's own training images as files, its tuning (or "test") images as arrays, and the weights, for the
    peers.
    """
    import torch

    from hpo.vision.data.images import load_images
    from hpo.vision.scoring import build_evaluation_set

    images = load_images(spec.data, spec.model.input_size, spec.seed)
    for row, label in zip(images.train.rows, images.train.labels, strict=True):
        path = folder / "train" / f"{label:05}" / f"{row}.png"  # ImageFolder numbers classes by name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.train.pixels[row]).save(path)
    perturbations = spec.objective.perturbations
    tuning = build_evaluation_set(getattr(images, scored), perturbations, torch.device("cpu"))
    arrays = {name: pixels.numpy() for name, pixels in tuning.conditions.items()}
    np.savez(folder / "tuning.npz", labels=tuning.labels.numpy(), **arrays)
    settings = {"size": images.train.pixels.shape[1], "horizontal_flip": spec.training.horizontal_flip}
    (folder / "settings.json").write_text(json.dumps(settings))
    if spec.model.weights != "none":
        shutil.copy(spec.model.weights, folder / "weights.safetensors")


def run_peer(system: str, given: argparse.Namespace, seed: int, folder: Path) -> tuple[float, list[Report]]:
    """(when it started, its reports)."""
    images = folder / "images"
    export_images(load_spec(STUDY, overrides(given, seed, given.epochs)), images)
    python = Path(given.peers) / system / "bin" / "python"
    script = HERE / "peers" / PEERS[system]
    trace = folder / "trace.jsonl"
    arguments = [images, str(given.minutes * 60), str(seed), str(given.epochs), trace]
    started = time.time()
    wait(start([python, script, *arguments], folder), given.minutes * 60)
    return started, [json.loads(line) for line in trace.read_text().splitlines()]


def run_hpo(given: argparse.Namespace, seed: int, folder: Path) -> tuple[float, list[Report]]:
    """The same of `hpo run`; the database is polled, since it does not say when an epoch was reported."""
    settings = [part for override in overrides(given, seed, given.epochs) for part in ("--set", override)]
    started = time.time()
    process = start([Path(sys.executable).parent / "hpo", "run", STUDY, "--workers", given.workers, *settings], folder)
    engine = sa.create_engine(f"sqlite:///file:{folder}/hpo.db?mode=ro&uri=true")
    seen: dict[tuple[int, int], Report] = {}
    while time.time() < started + given.minutes * 60 and process.poll() is None:
        time.sleep(POLL_SECS)
        note_reports(engine, seen)
    end(process)
    return started, list(seen.values())


def note_reports(engine: sa.Engine, seen: dict[tuple[int, int], Report]) -> None:
    query = sa.select(
        trials.c.number,
        trials.c.trial_id,
        trial_intermediate_values.c.step,
        trial_intermediate_values.c.intermediate_value,
    ).join(trials, trials.c.trial_id == trial_intermediate_values.c.trial_id)
    try:
        with engine.connect() as connection:
            for number, trial_id, step, score in connection.execute(query).all():
                if (number, step) not in seen:
                    params = connection.execute(
                        sa.select(trial_params.c.param_name, trial_params.c.param_value).where(
                            trial_params.c.trial_id == trial_id
                        )
                    )
                    report = {"time": time.time(), "trial": number, "epoch": step, "score": score}
                    seen[number, step] = report | {"params": dict(map(tuple, params))}
    except sa.exc.OperationalError:  # not there yet
        return


def start(command: list[Any], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [str(part) for part in command], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to stop, then kills it with all that it started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_SECS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def precision() -> str:
    """What hpo computes in on this machine's CPU; peers compute in fp32."""
    from hpo.cores import cpu_multiplies_bf16

    return "bf16" if cpu_multiplies_bf16() else "fp32"


def calibrate() -> float:
    """How fast this machine is just now: Gflop/s of fp32 matrix products on two cores."""
    rng = np.random.default_rng(0)
    a = rng.random((2048, 2048), dtype=np.float32)
    a @ a
    started = time.perf_counter()
    for _ in range(10):
        a @ a
    return round(10 * 2 * 2048**3 / (time.perf_counter() - started) / 1e9, 1)


def conditions(given: argparse.Namespace) -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    chosen = {key: value for key, value in vars(given).items() if key not in NO_CONDITIONS}
    return {
        **chosen,
        "archive": Path(given.archive).name if given.archive else "digits",
        "weights": Path(given.weights).name if given.weights else None,
        "cores": len(os.sched_getaffinity(0)),
        "precision": precision(),
        "cpu": next((line.split(":")[1].strip() for line in cpus if "model name" in line), "unknown"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit,
        "gflops_before": calibrate(),
    }


def run(given: argparse.Namespace) -> None:
    results = RESULTS / precision()
    results.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for system in given.systems:
            file = results / f"{system}-{seed}.json"
            if file.exists() and not given.again:
                continue
            kept = conditions(given)
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                begin, reports = (
                    run_hpo(given, seed, folder) if system == "hpo" else run_peer(system, given, seed, folder)
                )
                log = (folder / "log.txt").read_text(errors="replace")
            if not reports:
                raise SystemExit(f"{system} reported nothing:\n{log[-3000:]}")
            for report in reports:
                report["time"] = round(report["time"] - begin, 2)
            kept["gflops_after"] = calibrate()
            kept["date"] = time.strftime("%Y-%m-%d %H:%M")
            whole = {"system": system, "seed": seed, "conditions": kept, "reports": reports}
            file.write_text(json.dumps(whole).replace('{"time"', '\n{"time"') + "\n")  # a line a report
            best = max(reports, key=lambda report: report["score"])
            print(
                f"{system}, seed {seed}: best {best['score']:.4f} after {best['time']:.0f} s, "
                f"{len({r['trial'] for r in reports})} trials, {len(reports)} epochs",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="one run for each system and seed that has none yet")
    running.set_defaults(does=run)
    running.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    running.add_argument("--minutes", type=float, default=20)
    running.add_argument("--workers", type=int, default=1, help="of hpo; each has its share of the cores")
    running.add_argument("--epochs", type=int, default=4)
    running.add_argument("--archive", type=os.path.abspath)
    running.add_argument("--images-per-class", type=int, default=100)
    running.add_argument("--weights", type=os.path.abspath)
    running.add_argument("--peers", type=os.path.abspath)
    running.add_argument("--again", action="store_true", help="replace results that exist")
    reporting = commands.add_parser("report", help="table and plot of the results")
    reporting.set_defaults(does=lambda given: print_and_draw(given.precision))
    reporting.add_argument("--precision", choices=["bf16", "fp32"], default=precision(), help="of the machine's kind")
    given = parser.parse_args()
    given.does(given)


if __name__ == "__main__":
    main()
