"""What each cheap ingredient of robust training gains and costs: the ground on which its default is chosen.

    python benchmarks/ingredients.py train --archive tiny-imagenet-50.zip --weights resnet18.safetensors
    python benchmarks/ingredients.py train … --arms default "patches from 0.5 + beta" "search.perturbed_share=0.7"
    python benchmarks/ingredients.py table

An arm is a name in ARMS, an override of the study file, or several of them joined by " + "; each changes the recipe of
the log's table of recipes (batch 64, rate 0.03, 2 frozen units, strength 0.9). A seed draws the training and tuning
images, and seeds the training. One process a core, a thread each. Each line of `results/ingredients.jsonl` is one
training; those that are there are not repeated. `table` prints correct images of all, and the score.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from time_to_target import HERE, STUDY, overrides

RESULTS = HERE / "results" / "ingredients.jsonl"
RECIPE = [
    "budget=2",
    "search.batch_size=64",
    "search.learning_rate=0.03",
    "search.frozen_layers=2",
    "search.augmentation_strength=0.9",
]


def divided(noise: float, recoloured: float) -> list[str]:
    """Weights, of which no one may be above 1."""
    families = (
        f'{{ name = "gaussian-noise", sigma = 0.1, weight = {noise} }}',
        f'{{ name = "pixel-recolor", fraction = 0.05, weight = {recoloured} }}',
    )
    return [f"augmentation.perturbations=[{', '.join(families)}]"]


ARMS: dict[str, list[str]] = {
    "baseline": [],
    "default": [],
    "patches from 0.2": ["search.perturbed_area=0.2"],
    "patches from 0.5": ["search.perturbed_area=0.5"],
    "beta": ["search.severity_draw=beta"],
    "recoloured 2:1": divided(0.5, 1),
    "recoloured 3:1": divided(0.333, 1),
    "consistency 1": ["search.consistency=1"],
    "consistency 6": ["search.consistency=6"],
    "interpolated": ["search.interpolated=yes"],
    "batch norm split": ["search.batch_norm=split"],
    "trivial": ["training.trivial_augment=true"],
    "baseline + trivial": ["training.trivial_augment=true"],
}


def settings_of(arm: str) -> list[str]:
    """Overrides of the study file."""
    parts = [part.strip() for part in arm.split(" + ")]
    if unknown := [part for part in parts if part not in ARMS and "=" not in part]:
        raise SystemExit(f"--arms: {unknown[0]} is not among {', '.join(ARMS)}, and no override such as a.b=c")
    return sorted(itertools.chain.from_iterable(ARMS.get(part, [part]) for part in parts))


def train(given: argparse.Namespace) -> None:
    there = {name_of(line) for line in read_results(given.results)}
    wanted = [
        {"arm": arm, "overrides": settings_of(arm), "seed": seed, "epochs": epochs}
        for epochs, seed, arm in itertools.product(given.epochs, given.seeds, given.arms)
    ]
    wanted = [job for job in wanted if name_of(job) not in there]
    given.results.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool,
    ):
        jobs = [pool.submit(trained, given, Path(folder), job) for job in wanted]
        for job in as_completed(jobs):
            line = job.result()
            with given.results.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def name_of(line: dict[str, Any]) -> str:
    """Arms that mean the same are the same, but for the baseline."""
    is_baseline = line["arm"].split(" + ")[0] == "baseline"
    return json.dumps([line["overrides"], line["seed"], line["epochs"], is_baseline])


def trained(given: argparse.Namespace, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    from real_objective import robust_accuracy

    from hpo.doors.objective import Measurement, Trial
    from hpo.study_file.reading import load_spec
    from hpo.vision.training.checkpoints import BASELINE_WEIGHTS

    seed = job["seed"]
    common = [*overrides(given, seed, job["epochs"]), f"data.split_seed={seed}", *RECIPE]
    spec = load_spec(STUDY, common + job["overrides"])
    shared = hashlib.sha256(json.dumps(spec.identity(), sort_keys=True).encode()).hexdigest()[:12]
    objective = robust_accuracy(spec, 1, folder / shared)

    def measured(baseline: bool) -> list[Measurement]:
        params = spec.search.baseline() if baseline else spec.search.defaults()
        return list(objective.run(Trial(int(not baseline), params, seed=seed, steps=spec.steps, baseline=baseline)))

    is_baseline = job["arm"].split(" + ")[0] == "baseline"
    if spec.waits_for_baseline and not is_baseline and objective.store.read(BASELINE_WEIGHTS) is None:
        measured(baseline=True)
    started, busy = time.perf_counter(), time.process_time()
    found = measured(is_baseline)
    *_, last = found
    images = last.attributes["images"]
    kept = ("images_per_second", "device", "interpolated_share")
    return {
        **job,
        "scores": [round(each.score, 4) for each in found],
        "correct": {name: [round(part * images), images] for name, part in last.parts.items()},
        **{key: last.attributes[key] for key in kept if key in last.attributes},
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
    }


def read_results(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(given: argparse.Namespace) -> None:
    lines = read_results(given.results)
    for epochs in sorted({line["epochs"] for line in lines}):
        found = [line for line in lines if line["epochs"] == epochs]
        print(f"\n{epochs} epochs\n\n{heading(found)}")
        for line in sorted(found, key=lambda line: (line["seed"], -line["scores"][-1])):
            print(row(line))


def heading(lines: Sequence[dict[str, Any]]) -> str:
    columns = ["arm", "seed", *lines[0]["correct"], "score", "CPU seconds"]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def row(line: dict[str, Any]) -> str:
    def cells() -> Iterator[str]:
        share = line.get("interpolated_share")
        yield line["arm"] + (f" ({share:g})" if share is not None else "")
        yield str(line["seed"])
        yield from (f"{right}/{total}" for right, total in line["correct"].values())
        yield f"{line['scores'][-1]:.4f}"
        yield f"{line['cpu_seconds']:.0f}"

    return f"| {' | '.join(cells())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="trains what is not in the results yet")
    training.set_defaults(does=train)
    training.add_argument("--archive", type=os.path.abspath, help="else handwritten digits, to try it out")
    training.add_argument("--weights", type=os.path.abspath)
    training.add_argument("--images-per-class", type=int, default=100)
    training.add_argument("--arms", nargs="+", default=list(ARMS), help=f"by default {', '.join(ARMS)}")
    training.add_argument("--epochs", type=int, nargs="+", default=[4, 8])
    training.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    training.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    training.add_argument("--results", type=Path, default=RESULTS)
    showing = commands.add_parser("table", help="what has been trained, in Markdown")
    showing.add_argument("--results", type=Path, default=RESULTS)
    showing.set_defaults(does=table)
    given = parser.parse_args()
    given.does(given)


if __name__ == "__main__":
    main()
