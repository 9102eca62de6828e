"""Whether what each system of time_to_target.py found keeps its order: its best configuration, trained anew with five
seeds by the system's own training, and scored on the locked test images.

    python benchmarks/retrain.py --peers ~/peers --archive tiny-imagenet-50.zip --weights resnet18.safetensors

The best of a system is that of its run with the median best score, on the training images of that run; the test images
(TinyImageNet's own validation images) were seen by no search. Each kind of machine, CPUs that multiply bf16 and
others, has its file `results/retrain-PRECISION.jsonl`; trainings that are in it are not repeated.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from time_to_target import HERE, STUDY, conditions, export_images, overrides, precision
from time_to_target_report import SYSTEMS, best_score, finished_runs

from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec

KEPT = HERE / "results" / f"retrain-{precision()}.jsonl"
TRAINING_SEEDS = range(1000, 1005)
PEER = """
import itertools, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fine_tuning
config, folder, epochs, seed = json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
epoch, score, unscored = itertools.count(1), fine_tuning.accuracies, dict.fromkeys(fine_tuning.SCORE_WEIGHTS, 0.0)
fine_tuning.accuracies = lambda *images: score(*images) if next(epoch) == epochs else unscored
*_, last = fine_tuning.train(config, folder, epochs, loader_workers=2, seed=seed)
print(json.dumps(last))
"""
"""The peers' training, scored after its last epoch alone."""


def median_runs() -> Iterator[dict[str, Any]]:
    """The run of each system whose best score is the (lower) median."""
    results = finished_runs(precision())
    for system in SYSTEMS:
        if found := sorted((r for r in results if r["system"] == system), key=best_score):
            yield found[(len(found) - 1) // 2]


def train_as_hpo(spec: Spec, params: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    from real_objective import robust_accuracy

    from hpo.doors.objective import Trial

    objective = robust_accuracy(spec, len(os.sched_getaffinity(0)), folder)
    trial = Trial(0, {"initial_weights": "pretrained", **params}, seed=seed, steps=spec.steps, split="test")
    *_, last = objective.run(trial)
    return {"score": last.score, **last.parts}


def train_as_peer(python: Path, spec: Spec, params: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    if not folder.exists():
        export_images(spec, folder, "test")
    command = [python, "-c", PEER, HERE / "peers", json.dumps(params), folder, spec.training.epochs, seed]
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def as_params(report: dict[str, Any]) -> dict[str, Any]:
    """hpo's database has all as floats, and the initial weights as a choice's position."""
    params = {key: value for key, value in report["params"].items() if key != "initial_weights"}
    return params | {key: int(params[key]) for key in ("batch_size", "frozen_layers")}


def show(lines: list[dict[str, Any]]) -> None:
    print(
        f"\n{'system':10} {'trainings':>9} {'median score':>13} {'lowest':>7} {'highest':>8}  clean, noise, recolored"
    )
    for system in SYSTEMS:
        found = [line for line in lines if line["system"] == system]
        if found:
            scores = [line["measured"]["score"] for line in found]
            parts = [
                statistics.median(line["measured"][name] for line in found)
                for name in ("clean", "gaussian-noise", "pixel-recolor")
            ]
            print(
                f"{system:10} {len(found):9} {statistics.median(scores):13.4f} {min(scores):7.4f} {max(scores):8.4f}  "
                + ", ".join(f"{part:.4f}" for part in parts)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=os.path.abspath)
    parser.add_argument("--weights", type=os.path.abspath)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--peers", type=os.path.abspath, required=True)
    given = parser.parse_args()
    lines = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    made_by = conditions(given)
    there = {(line["system"], line["seed"], line["training_seed"], json.dumps(line["params"])) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        for training_seed, result in itertools.product(TRAINING_SEEDS, list(median_runs())):
            system, seed = result["system"], result["seed"]
            params = as_params(max(result["reports"], key=lambda report: report["score"]))
            if (system, seed, training_seed, json.dumps(params)) in there:
                continue
            spec = load_spec(STUDY, overrides(given, seed, given.epochs))
            if system == "hpo":
                measured = train_as_hpo(spec, params, training_seed, Path(folder) / f"hpo-{training_seed}")
            else:
                python = Path(given.peers) / system / "bin" / "python"
                measured = train_as_peer(python, spec, params, training_seed, Path(folder) / system)
            line = {"system": system, "seed": seed, "training_seed": training_seed, "measured": measured}
            lines.append(line | {"params": params, "conditions": made_by})
            with KEPT.open("a") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
    show(lines)


if __name__ == "__main__":
    main()
