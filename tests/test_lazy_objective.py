"""Workers take a trial before they load PyTorch, and lose none if it cannot be loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ONE_THREAD, Hpo, make_spec, write_study

from hpo.artifacts import Artifacts
from hpo.errors import InputError
from hpo.objectives.lazy_objective import LazyObjective
from hpo.objectives.robust_accuracy import RobustAccuracy
from hpo.search.sql.storage import open_engine, parse_url
from hpo.search.sql.studies import check_fingerprints, find_studies
from hpo.vision.classifier import build_network
from hpo.vision.training.checkpoints import weights_as_bytes

SAYS_WHETHER_PYTORCH_IS_LOADED = """
import sys, click, hpo.cli.main
echo = click.echo
click.echo = lambda text, **options: echo(f"{'torch' in sys.modules} {text}", **options)
hpo.cli.main.main()
"""


@pytest.fixture(autouse=True)
def _images(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))


@pytest.fixture
def taken_up(hpo: Hpo, tmp_path: Path) -> Path:
    """The folder of a study that a worker has taken up before: its images and weights are known."""
    hpo("submit", write_study(tmp_path, budget=1, training={"epochs": 1, "horizontal_flip": False}))
    engine = open_engine(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    study = find_studies(engine, ["study"])[0]
    objective = LazyObjective(study.spec, 1, Artifacts(str(tmp_path)))
    check_fingerprints(engine, study, objective.fingerprints, objective.about)
    engine.dispose()
    return tmp_path


def run_worker(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SAYS_WHETHER_PYTORCH_IS_LOADED, "worker", "study"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | ONE_THREAD | environment, capture_output=True, text=True
    )


def test_a_worker_takes_a_trial_before_it_loads_pytorch(taken_up: Path) -> None:
    lines = run_worker(taken_up).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["False", "True"], lines
    assert "trial 0 starts" in lines[0], lines
    assert "trial 0 complete" in lines[1], lines


def test_without_pytorch_a_worker_gives_its_trial_back(taken_up: Path, hpo: Hpo, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libtorch_cpu.so is missing')")
    result = run_worker(taken_up, PYTHONPATH=str(broken))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(
        "hpo: PyTorch does not work on this machine: libtorch_cpu.so is missing"
    ), result.stderr
    status = json.loads(hpo("status", "study", "--json").stdout)
    assert (status["finished"], status["running"], status["waiting"]) == (0, 0, status["budget"])
    assert (status["failed"], status["interrupted"]) == (0, 1)


@pytest.mark.parametrize("kind", ["none", ".safetensors", ".pth"])
def test_images_and_weights_are_known_as_they_are_to_the_objective(tmp_path: Path, kind: str) -> None:
    weights = "none"
    if kind != "none":
        network = build_network("resnet18", 5, {}, 32, 0, seed=1).to(torch.bfloat16)
        file = tmp_path / f"weights{kind}"
        weights = str(file)
        if kind == ".pth":
            torch.save(network.module.state_dict(), file)
        else:
            file.write_bytes(weights_as_bytes(network))
    spec = make_spec(model={"weights": weights, "input_size": 32})
    store = Artifacts(str(tmp_path / "artifacts"))
    assert LazyObjective(spec, 1, store).fingerprints == RobustAccuracy(spec, 1, store).fingerprints


def test_weights_that_change_after_the_worker_looked_at_them_are_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_as_bytes(build_network("resnet18", 5, {}, 32, 0, seed=1)))
    spec = make_spec(model={"weights": str(file), "input_size": 32})
    objective = LazyObjective(spec, 1, Artifacts(str(tmp_path / "artifacts")))
    file.write_bytes(weights_as_bytes(build_network("resnet18", 5, {}, 32, 0, seed=2)))
    with pytest.raises(InputError, match="study 'study': its weights were changed while this worker ran"):
        objective.check()
