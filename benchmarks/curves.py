"""What configurations score after each epoch, and what cheaper trainings say of them: the ground on which the search's
defaults are chosen.

    python benchmarks/curves.py train --archive tiny-imagenet-50.zip --weights resnet18.safetensors
    python benchmarks/curves.py rank

`train` draws configurations from the space of time_to_target.toml, evenly (Sobol) and some near what is known to be
good, and trains each to its end; some of the evenly drawn also on a quarter of the images, and at half the resolution.
One process a core, a thread each. Each line of `results/curves.jsonl` is one training; those that are there are not
repeated. `rank` prints how well each epoch, and each cheaper training, agrees with the last epoch (Spearman's rank
correlation; how many of the best third it keeps in its own best third), and what it costs.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from time_to_target import HERE, STUDY, overrides

RESULTS = HERE / "results" / "curves.jsonl"
CHEAPER = {
    "all": {},
    "a quarter of the images": {"images_per_class": 0.25},
    "half the resolution": {"model.input_size": 32},
}
Params = dict[str, Any]


def drawn(count: int, near: int, seed: int) -> Iterator[tuple[str, Params]]:
    """(how it was drawn, configuration): `count` of the whole space, `near` around what is known to be good."""
    from scipy.stats import qmc

    batch_sizes = [32, 64, 128, 256, 512]
    for kind, points in (("even", count), ("near", near)):
        for u in qmc.Sobol(4, seed=seed).random(points):
            if kind == "even":
                batch_size, rate = batch_sizes[int(5 * u[0])], 10 ** (-3 + 2 * u[1])
                frozen, strength = int(10 * u[2]), u[3]
            else:
                batch_size, rate = batch_sizes[int(3 * u[0])], 0.008 * (0.05 / 0.008) ** u[1]
                frozen, strength = int(4 * u[2]), 0.5 + 0.5 * u[3]
            yield (
                kind,
                {
                    "batch_size": batch_size,
                    "learning_rate": float(f"{rate:.4g}"),
                    "frozen_layers": frozen,
                    "augmentation_strength": round(float(strength), 3),
                    "initial_weights": "pretrained",
                },
            )


def train(given: argparse.Namespace) -> None:
    there = {(line["training"], json.dumps(line["params"])) for line in read_results()}
    wanted = [
        (training, kind, params)
        for position, (kind, params) in enumerate(drawn(given.count, given.near, given.seed))
        for training in CHEAPER
        if (training == "all" or position < given.cheaper) and (training, json.dumps(params)) not in there
    ]
    cores = len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool,
    ):
        jobs = [pool.submit(curve, given, folder, *each) for each in wanted]
        for job in as_completed(jobs):
            line = job.result()
            with RESULTS.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


_objectives: dict[str, Any] = {}


def curve(given: argparse.Namespace, folder: str, training: str, kind: str, params: Params) -> dict[str, Any]:
    from real_objective import robust_accuracy

    from hpo.doors.objective import Trial
    from hpo.study_file.reading import load_spec

    if training not in _objectives:
        changes = dict(CHEAPER[training])
        share = changes.pop("images_per_class", 1)
        settings = overrides(given, given.seed, given.epochs) + [f"{key}={value}" for key, value in changes.items()]
        spec = load_spec(STUDY, settings)
        _objectives[training] = robust_accuracy(spec, 1, Path(folder))
        if share < 1:  # the tuning images stay the same
            images = _objectives[training].images
            arrays = {name: getattr(images.train, name)[:: round(1 / share)] for name in ("rows", "labels", "keys")}
            _objectives[training].images = replace(images, train=replace(images.train, **arrays))
    started, busy = time.perf_counter(), time.process_time()
    objective = _objectives[training]
    measured = list(objective.run(Trial(0, params, seed=given.seed, steps=objective.spec.steps)))
    return {
        "training": training,
        "drawn": kind,
        "seed": given.seed,
        "scores": [round(m.score, 4) for m in measured],
        "clean": [round(m.parts["clean"], 4) for m in measured],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "params": params,
    }


def read_results(file: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rank(given: argparse.Namespace) -> None:
    from scipy.stats import spearmanr

    lines = read_results(given.results)
    by_training = {
        name: found
        for name in CHEAPER
        if (found := {json.dumps(line["params"]): line for line in lines if line["training"] == name})
    }
    shared = sorted(set.intersection(*(set(found) for found in by_training.values())))
    final = np.array([by_training["all"][key]["scores"][-1] for key in shared])
    cost = np.array([by_training["all"][key]["cpu_seconds"] for key in shared])
    best = set(np.argsort(-final)[: len(shared) // 3])
    print(f"{len(shared)} configurations, the last epoch's scores {final.min():.3f} to {final.max():.3f}\n")
    print(f"{'measured':36} {'rank correlation':>16} {'best third kept':>16} {'share of cost':>14}")
    for name, found in by_training.items():
        epochs = len(found[shared[0]]["scores"])
        for epoch in range(1, epochs + 1):
            scores = np.array([found[key]["scores"][min(epoch, len(found[key]["scores"])) - 1] for key in shared])
            kept = best & set(np.argsort(-scores)[: len(shared) // 3])
            share = np.array([found[key]["cpu_seconds"] * epoch / epochs for key in shared]) / cost
            print(
                f"{f'{name}, epoch {epoch}':36} {spearmanr(scores, final).statistic:16.3f} "
                f"{f'{len(kept)} of {len(best)}':>16} {share.mean():14.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="trains what is not in the results yet")
    training.set_defaults(does=train)
    training.add_argument("--archive", type=os.path.abspath, required=True)
    training.add_argument("--weights", type=os.path.abspath, required=True)
    training.add_argument("--images-per-class", type=int, default=100)
    training.add_argument("--epochs", type=int, default=4)
    training.add_argument("--count", type=int, default=8)
    training.add_argument("--cheaper", type=int, default=0, help="so many of these also with cheaper trainings")
    training.add_argument("--near", type=int, default=16)
    training.add_argument("--seed", type=int, default=100, help="not one that time_to_target uses")
    ranking = commands.add_parser("rank", help="how well early epochs and cheap trainings keep the ranking")
    ranking.set_defaults(does=rank)
    ranking.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.does(given)


if __name__ == "__main__":
    main()
