"""How fast hpo is on a GPU, and whether it is right there: one command for any CUDA machine, in under six minutes.

    python benchmarks/gpu.py --archive tiny-imagenet-50.zip --weights resnet18.safetensors

A bare training step (called from Python, and as a CUDA graph) is the limit, a plain script with a DataLoader what users
have; beside them hpo's step and its whole epochs by batch size and frozen layers, scoring, sixteen random trials by
1, 2, 4 and 8 workers, a worker's start, and what must be equal. Each stage is a process of its own (gpu_stages.py); one
that fails or takes too long leaves the others as they are. The table goes to the screen, and all figures to
results/gpu.json, stage by stage. Without a GPU the same runs on the CPU with a small study, in ten minutes: that checks
the program, and measures nothing.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_stages import HERE, STAGES

RESULT = HERE / "results" / "gpu.json"
ON_GPU = {
    "batches": [32, 128, 512],
    "frozen": [0, 3, 6, 9],
    "secs": 0.7,
    "epochs": 5,
    "images_per_class": None,
    "plain_batch": 128,
    "plain_epochs": 3,
    "loaders": 14,
    "trials": 16,
    "trial_epochs": 6,
    "workers": [1, 2, 4, 8],
    "workers_without_mps": [4],
    "killed_epochs": 12,
    "killed_after_secs": 0.5,
    "memory_mib": 1500,
}
WITHOUT = {
    "batches": [8, 32],
    "frozen": [0, 9],
    "secs": 0.5,
    "epochs": 3,
    "images_per_class": 6,
    "plain_batch": 32,
    "plain_epochs": 1,
    "loaders": 2,
    "trials": 4,
    "trial_epochs": 2,
    "workers": [1, 2],
    "workers_without_mps": [],
    "killed_epochs": 4,
    "killed_after_secs": 0.5,
    "memory_mib": 1500,
}
LIMIT_SECS = {
    "limit": 60,
    "plain": 75,
    "steps": 120,
    "start": 45,
    "equality": 60,
    "killed": 75,
    "memory": 45,
    "trials": 200,
    "compiled": 100,
}
SLOWER_WITHOUT = 5
CHECKS = ("equality", "killed", "memory")
"""Stages that time nothing: a GPU runs them at the same time."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--archive", type=os.path.abspath, help="a zip in TinyImageNet's layout; else handwritten digits"
    )
    parser.add_argument("--weights", type=os.path.abspath, help="of a ResNet-18, as .safetensors; else random ones")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="all by default")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON file; by default results/gpu.json")
    return parser.parse_args()


def measure(stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the stage found, or why it failed."""
    limit = LIMIT_SECS[stage] * (1 if settings["on_gpu"] else SLOWER_WITHOUT)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "result.json"), Path(folder, "settings.json")
        files[1].write_text(json.dumps(settings))
        command = [sys.executable, str(HERE / "gpu_stages.py"), stage, *map(str, files)]
        started = time.monotonic()
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            failed = ran.stderr[-2000:] if ran.returncode else ""
        except subprocess.TimeoutExpired:
            failed = f"took more than {limit} s"
        found = {"failed": failed} if failed else json.loads(files[0].read_text())
        return found | {"stage_secs": round(time.monotonic() - started, 1)}


def table(results: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """At most 60 lines."""
    stages = results["stages"]
    lines = [f"{results['device']}, torch {results['torch']}, commit {results['commit']}"]
    failed = {name: found["failed"] for name, found in stages.items() if isinstance(found.get("failed"), str)}
    lines += [f"FAILED {name}: {(text.strip().splitlines() or ['?'])[-1][:150]}" for name, text in failed.items()]
    fine = {name: found for name, found in stages.items() if name not in failed}
    if "limit" in fine:
        lines += bare_speeds(fine["limit"], settings)
    if "limit" in fine and "steps" in fine:
        lines += speeds(fine, settings)
    if "plain" in fine:
        lines.append(f"plain script, batches of {settings['plain_batch']}: {fine['plain']['best']} images/s")
    if "steps" in fine:
        found = fine["steps"]
        images = f"{found['train_images']} training images, {found['tuning_images']} tuning images"
        lines.append(f"scoring: {found['scoring']} images/s; {images}")
    if "trials" in fine:
        lines += trials_by_workers(fine["trials"], settings)
    for stage in ("start", "equality", "killed", "memory", "compiled"):
        if stage in fine:
            kept = {key: value for key, value in fine[stage].items() if key != "stage_secs"}
            lines += [
                f"{stage}{', seconds' if stage == 'start' else ''}:",
                *(f"  {key}: {value}" for key, value in kept.items()),
            ]
    took = ", ".join(f"{name} {found['stage_secs']}" for name, found in stages.items())
    return [*lines, f"seconds: {took}"]


def bare_speeds(limit: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    lines = ["bare step, images/s     called     graph  graph, deterministic"]
    for batch in map(str, settings["batches"]):
        kinds = (limit[kind][batch] for kind in ("eager", "captured", "captured, deterministic"))
        lines.append(f"  batch {batch:>4}        " + "".join(f"{rate:>10}" for rate in kinds))
    return lines


def speeds(fine: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    limit, found = fine["limit"], fine["steps"]
    lines = ["batch, frozen      hpo's step  of graph   its epochs  of graph   peak MiB  (wanted: 85 %, 70 %)"]
    for name, rate in found["step"].items():
        batch, frozen, _ = name.replace(",", "").split()
        graph, epoch = limit["captured"][batch], found["epoch"][name]
        shares = (f"{rate / graph:9.0%}", f"{epoch / graph:9.0%}") if frozen == "0" else (" " * 9, " " * 9)
        how = "" if found["how"][name] == "replayed" else found["how"][name][:40]
        peak = found["peak_mib"].get(name, "")
        lines.append(f"  {name:16} {rate:>10} {shares[0]} {epoch:>12} {shares[1]} {peak:>10} {how}")
    if "plain" in fine and (name := f"{settings['plain_batch']}, 0 frozen") in found["epoch"]:
        lines.append(f"times the plain script: {found['epoch'][name] / fine['plain']['best']:.1f} (wanted: 4)")
    return lines


def trials_by_workers(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    size = f"{settings['trials']} trials of {settings['trial_epochs']} epochs"
    lines = [f"{size} (wanted of 16 of 6: 25 s with one worker, 15 s with the best number)"]
    for name, secs in found["wall_secs"].items():
        if name in found["scores"]:
            first, median = found["first_trial_secs"][name], found["median_trial_secs"][name]
            lines.append(f"  {name:16} {secs:6} s  first trial after {first}, median trial {median}")
        else:
            lines.append(f"  {name:16} {secs:6} s  FAILED {found['failed'][name][-90:]}")
    threads = "" if settings["on_gpu"] else " (on a CPU the number of threads matters)"
    return [*lines, f"  the same scores, to the digit: {found['same_scores']}{threads}"]


def commit() -> str | None:
    if shutil.which("git") is None:
        return None
    described = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip() or None


def main() -> None:
    import torch

    given = parse_arguments()
    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {"archive": given.archive, "weights": given.weights, "on_gpu": on_gpu}
    settings |= ON_GPU if on_gpu else WITHOUT
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else f"no GPU: {platform.machine()}, stand-ins",
        "torch": torch.__version__,
        "commit": commit(),
        "settings": settings,
        "stages": {},
    }
    given.result.parent.mkdir(parents=True, exist_ok=True)
    together = [stage for stage in given.stages if stage in CHECKS]
    for stages in [[stage] for stage in given.stages if stage not in CHECKS] + [together]:
        with ThreadPoolExecutor(len(CHECKS) if on_gpu else 1) as pool:
            for stage, found in zip(stages, pool.map(lambda stage: measure(stage, settings), stages), strict=True):
                results["stages"][stage] = found
                given.result.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{stage}: {found['stage_secs']} s", file=sys.stderr, flush=True)
    print("\n".join(table(results, settings)[:60]))


if __name__ == "__main__":
    main()
