"""Whether a study of two trials on digits comes to the same scores, and its baseline to the same weights to the bit,
when its worker is killed after the first checkpoint of each trial: for one network of each kind.

    python benchmarks/networks.py
    python benchmarks/networks.py --networks swin_t densenet121 timm/vit_tiny_patch16_224

The second trial starts from what the first, the baseline, learned, with some layers frozen.
"""

import argparse
import hashlib
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


def run(network: str, images: int, folder: Path, kills: bool) -> tuple[list[hpo.TrialResult], str]:
    """The trials of a study, and a digest of the weights that the baseline learned.

    kills: whether its worker is killed once in each trial, after a checkpoint.
    """
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
    (weights,) = artifacts.rglob("baseline.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    return sorted(complete, key=lambda trial: not trial.baseline), digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=80, help="training images of each of the ten classes")
    given = parser.parse_args()
    differing = 0
    for network in given.networks:
        started = time.monotonic()
        found = []
        for kills in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                trials, weights = run(network, given.images, Path(folder), kills)
            found.append(([(trial.params, trial.reports) for trial in trials], weights))
            after = [trial.resumed_after_epoch for trial in trials]
            print(f"{network}: scores {[trial.score for trial in trials]}, weights {weights}, resumed after {after}")
        is_equal = found[0] == found[1] and after == [1, 1]
        differing += not is_equal
        print(f"{network}: {'equal' if is_equal else 'NOT EQUAL'}; {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
