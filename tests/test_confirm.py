"""`hpo confirm` on real images: what is scored, on which images, and that a killed one goes on to the same digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import tomli_w
import torch
from safetensors.torch import load
from support.commands import ONE_THREAD, Hpo
from support.packages import install
from support.studies import make_spec

from hpo.vision.data.images import load_images
from hpo.vision.normalise import Normalise

CONDITIONS = {
    "clean": [None],
    "gaussian-noise": [0.04, 0.08, 0.12, 0.15, 0.18, 0.3],
    "pixel-recolor": [0.05, 0.1, 0.2, 0.3, 0.4],
    "adversarial-noise against itself": [0.05],
    "adversarial-pixels against itself": [0.005],
}

TINY = {"name": "tiny", "weights": "none", "input_size": 16}
NETWORK = """
from torch import nn
import hpo
class Tiny(hpo.Network):
    names = ("tiny",)
    @staticmethod
    def build(name, classes, input_size):
        def unit(channels, more):
            return nn.Sequential(nn.Conv2d(channels, more, 3, 2, 1, bias=False), nn.BatchNorm2d(more), nn.ReLU())
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(unit(3, 16), unit(16, 32), pool, nn.Linear(32, classes))
    @staticmethod
    def units(module):
        return list(module)[:3]
    @staticmethod
    def head(module):
        return module[3]
"""
SEARCH = {
    "batch_size": {"choices": [16, 32, 64]},
    "learning_rate": {"low": 1e-2, "high": 1e-1, "log": True},
    "augmentation_strength": {"low": 0.0, "high": 1.0},
}


@pytest.fixture
def searched(tmp_path: Path, hpo_here: Hpo) -> Path:
    """A folder with a finished search of three trials."""
    folder = tmp_path / "searched"
    folder.mkdir()
    install(folder, "tiny", NETWORK, "[hpo.networks]\ntiny = tiny:Tiny\n")
    small = make_spec(budget=3, search=SEARCH, training={"epochs": 3, "horizontal_flip": False})
    document = small.model_dump(exclude_none=True)
    document["model"] = TINY
    (folder / "study.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    for arguments in (("submit", "study.toml"), ("worker",)):
        ran = hpo_here(*arguments, folder=folder, PYTHONPATH=str(folder))
        assert ran.returncode == 0, ran.stderr
    return folder


CONFIRM = ("confirm", "study", "--top", "1", "--seeds", "1", "--workers", "2")


def confirmed(hpo_here: Hpo, folder: Path) -> list[dict[str, Any]]:
    """What the command prints, after running what lacks."""
    ran = hpo_here(*CONFIRM, "--json", folder=folder, PYTHONPATH=str(folder))
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def complete(folder: Path) -> int:
    return started(folder, "state = 'complete'")


def started(folder: Path, condition: str = "true") -> int:
    """How many trainings of the confirmation."""
    engine = sa.create_engine(f"sqlite:///{folder}/hpo.db")
    with engine.connect() as connection:
        query = f"SELECT count(*) FROM trial_results WHERE study = 'study@confirmation' AND {condition}"  # noqa: S608
        found = int(connection.scalar(sa.text(query)) or 0)
    engine.dispose()
    return found


def test_a_confirmation_scores_locked_images_and_a_killed_one_goes_on_to_the_same_digits(
    searched: Path, tmp_path: Path, data_root: Path, hpo_here: Hpo
) -> None:
    copied = Path(shutil.copytree(searched, tmp_path / "copy"))
    for arguments in ((*CONFIRM, "--submit"), ("worker", "study@confirmation")):
        assert hpo_here(*arguments, folder=searched, PYTHONPATH=str(searched)).returncode == 0
    expected = confirmed(hpo_here, searched)
    check_kept_weights(searched, data_root, expected)
    given = [sys.executable, "-m", "hpo", *CONFIRM]
    environment = os.environ | {"PYTHONPATH": str(copied), "HPO_DATA_ROOT": str(data_root), **ONE_THREAD}
    process = subprocess.Popen(given, cwd=copied, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not complete(copied):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its worker, in a session of its own, sees that it is gone
    assert complete(copied) < 3
    assert confirmed(hpo_here, copied) == expected
    trained = started(copied)
    assert confirmed(hpo_here, copied) == expected
    assert started(copied) == trained, "asked again, nothing is trained again"
    found: dict[str, list[Any]] = {}
    for each in expected:
        if each["role"] == "candidate":
            found.setdefault(each["condition"], []).append(each["severity"])
    assert found == CONDITIONS
    assert {each["images"] for each in expected} == {359, 256}


def check_kept_weights(copied: Path, data_root: Path, found: list[dict[str, Any]]) -> None:
    """The accuracies are those of the kept weights on the locked images: in plain PyTorch, from the files alone."""
    engine = sa.create_engine(f"sqlite:///{copied}/hpo.db")
    with engine.connect() as connection:
        query = """SELECT r.value_json AS confirms, k.value_json AS file FROM trial_user_attributes r
            JOIN trial_system_attributes k ON k.trial_id = r.trial_id AND k.key LIKE 'artifacts:%'
            JOIN trials t ON t.trial_id = r.trial_id WHERE r.key = 'confirms' AND t.state = 'COMPLETE'"""
        rows = [
            (json.loads(row.confirms), json.loads(json.loads(row.file))) for row in connection.execute(sa.text(query))
        ]
    engine.dispose()
    assert len(rows) == 3
    found_here: dict[str, Any] = {}
    exec(NETWORK, found_here)  # noqa: S102
    Tiny = found_here["Tiny"]  # noqa: N806
    images = load_images(make_spec().data.model_copy(update={"root": str(data_root)}), 16, 0)
    pixels = torch.from_numpy(np.array(images.test.pixels[images.test.rows])).permute(0, 3, 1, 2)
    for confirms, file in rows:
        content = (copied / "hpo-artifacts" / file["artifact_id"]).read_bytes()
        network, normalise = Tiny.build("tiny", 10, 16).eval(), Normalise(16, Tiny.normalisation("tiny"))
        network.load_state_dict(load(content))
        with torch.no_grad():
            right = int((network(normalise(pixels)).argmax(1) == torch.from_numpy(images.test.labels)).sum())
        shown = next(
            each
            for each in found
            if (each["role"], each["trial"], each["condition"]) == (confirms["role"], confirms["trial"], "clean")
        )
        assert shown["correct"] == [right]
