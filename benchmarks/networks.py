"""Whether a study of two trials on digits comes to the same scores, to the last digit, when its worker is killed after
the first checkpoint of each trial: for one network of each kind.

    python benchmarks/networks.py
    python benchmarks/networks.py --networks swin_t densenet121 timm/vit_tiny_patch16_224

The second trial starts from what the first, the baseline, learned, with some layers frozen.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import tomli_w

import hpo

NETWORKS = ["convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "vit_b_16", "timm/resnet10t"]
MOST_SECS = 1200


def write_study(network: str, images: int, folder: Path) -> Path:
    document = {
        "name": "networks",
        "budget": 2,
        "data": {"name": "digits", "images_per_class": images},
        "model": {"name": network, "weights": "none", "input_size": 32},
        "training": {"epochs": 2, "horizontal_flip": False},
        "search": {
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": {"low": 3e-4, "high": 3e-3, "log": True},
            "frozen_layers": {"low": 1, "high": 3},
            "augmentation_strength": {"low": 0.0, "high": 1.0},
            "initial_weights": {"choices": ["pretrained", "baseline"], "default": "baseline"},
        },
        "objective": {"clean": 0.5, "perturbations": [{"name": "gaussian-noise", "sigma": 0.1, "weight": 0.5}]},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
    }
    file = folder / "study.toml"
    file.write_text(tomli_w.dumps(document), encoding="utf-8")
    return file


def run(network: str, images: int, folder: Path, kills: bool) -> list[hpo.TrialResult]:
    """The trials of a study. kills: whether its worker is killed once in each of them, after a checkpoint."""
    study, artifacts = write_study(network, images, folder), folder / "artifacts"
    environment = os.environ | {"HPO_ARTIFACTS": str(artifacts)}
    command = [sys.executable, "-m", "hpo", "run", study.name, "--workers", "1"]
    with (folder / "log").open("w") as log:
        running = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        killed: set[str] = set()
        deadline = time.monotonic() + MOST_SECS
        while running.poll() is None:
            assert time.monotonic() < deadline, "takes too long"
            new = {file.name for file in artifacts.rglob("*.checkpoint")} - killed
            if kills and new:
                for worker in running.children(recursive=True):
                    worker.kill()
                killed |= new
            time.sleep(0.02)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, (folder / "log").read_text())
    complete = hpo.load_results("networks", "state = 'complete'", f"sqlite:///{folder}/hpo.db")
    return sorted(complete, key=lambda trial: not trial.baseline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=80, help="training images of each of the ten classes")
    given = parser.parse_args()
    differing = 0
    for network in given.networks:
        started = time.monotonic()
        trials = []
        for kills in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                trials.append(run(network, given.images, Path(folder), kills))
        whole, resumed = ([(trial.params, trial.reports) for trial in some] for some in trials)
        after = [trial.resumed_after_epoch for trial in trials[1]]
        scores = [[trial.score for trial in some] for some in trials]
        differing += whole != resumed or after != [1, 1]
        print(f"{network}: undisturbed {scores[0]}, resumed after epochs {after} {scores[1]}, ", end="")
        print(f"{'equal' if whole == resumed else 'NOT EQUAL'}; {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
