"""`hpo export`: what it writes is what other programs read, and gives what its card says."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import sqlalchemy as sa
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support.commands import Hpo
from support.studies import make_spec
from torchvision.models import resnet18

import hpo
from hpo.artifacts import open_artifacts
from hpo.search.loading import load_objective
from hpo.search.sql.submitting import submit
from hpo.search.worker import work
from hpo.vision.data.images import Split, load_images

BLOCKED = ("hpo", "optuna", "sqlalchemy", "pydantic", "scipy", "sklearn")


@pytest.fixture
def test_images(sqlite_engine: sa.Engine, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """A finished study in the current folder; its test images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    data = {"name": "digits", "images_per_class": 60, "validation_fraction": 0.05}
    spec = make_spec(budget=2, data=data, training={"epochs": 2, "horizontal_flip": False})
    submit(sqlite_engine, spec)
    load = partial(load_objective, threads=1, say=lambda text: None)
    work(sqlite_engine, ["study"], load, "worker", lambda text: None, artifacts=open_artifacts())
    return load_images(spec.data, 16, 0).test


@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")  # MLflow's, of SQLAlchemy
def test_the_folder_gives_what_its_card_says(test_images: Split, hpo_here: Hpo, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ran = hpo_here("export", "study", "network", "--onnx", "--mlflow", uri, "--tensorboard", "curves")
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "network"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "model.onnx", "predict.py", "study.toml"),
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    said = re.search(r"These weights classify (\d+) of the (\d+) test images", card)
    assert said is not None
    right, total = int(said[1]), int(said[2])
    assert total == len(test_images)
    assert right > 0.3 * total, "it learned something"
    assert "Nothing is confirmed" in card
    assert "pgd" in card.split("What was never tested")[1]
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "pytorch"

    network = resnet18(num_classes=10)
    network.load_state_dict(load_file(folder / "model.safetensors"))  # under torchvision's own names

    pixels = torch.from_numpy(np.array(test_images.pixels[test_images.rows])).permute(0, 3, 1, 2)
    loaded = hpo.load_model(folder)
    assert loaded.classes == tuple("0123456789")
    with torch.no_grad():
        assert int((loaded(pixels).argmax(1).numpy() == test_images.labels).sum()) == right

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {"pixels": pixels.float().div(255).numpy()})
    assert abs(int((logits.argmax(1) == test_images.labels).sum()) - right) <= 1

    files = []
    for number, (row, label) in enumerate(zip(test_images.rows, test_images.labels, strict=True)):
        files.append(tmp_path / f"{number}-{label}.png")
        Image.fromarray(test_images.pixels[row]).save(files[-1])
    without = "; ".join(["import sys", *(f"sys.modules[{name!r}] = None" for name in BLOCKED)])
    code = f"{without}; sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    ran_alone = subprocess.run(
        [sys.executable, "-c", code, str(folder / "predict.py"), *map(str, files)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran_alone.returncode == 0, ran_alone.stderr
    answers = re.findall(r"-(\d)\.png: (\d) \([0-9.]+ %\)", ran_alone.stdout)
    assert len(answers) == total
    assert sum(label == answer for label, answer in answers) == right

    assert hpo_here("export", "study", "network").returncode == 2, "a folder is never overwritten"
    assert json.loads((folder / "config.json").read_text())["study"] == "study"
    check_trackers(hpo_here, tmp_path, uri)


def check_trackers(hpo_here: Hpo, tmp_path: Path, uri: str) -> None:
    """All trials are read by MLflow's and TensorBoard's own readers."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trials = hpo.load_results("study")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    runs = {int(run.data.tags["hpo.trial"]): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {trial.number for trial in trials}
    for trial in trials:
        run = runs[trial.number]
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        for name in ("score", *trial.parts):
            kept = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
            assert kept == {int(report["step"]): report[name] for report in trial.reports}
        read = EventAccumulator(str(tmp_path / "curves" / f"trial-{trial.number}"))
        read.Reload()
        for name in ("score", *trial.parts):
            curve = {event.step: event.value for event in read.Scalars(name)}
            assert curve == pytest.approx({int(report["step"]): report[name] for report in trial.reports})
    best = runs[json.loads((tmp_path / "network" / "config.json").read_text())["trial"]]
    assert "model/predict.py" in {file.path for file in client.list_artifacts(best.info.run_id, "model")}
    assert "0 trials added" in hpo_here("export", "study", "again", "--mlflow", uri).stderr
    refused = hpo_here("export", "study", "third", "--mlflow", "nonsense://nowhere")
    assert refused.returncode == 2
    assert "--mlflow: nonsense://nowhere refuses" in refused.stderr
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "or is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "or is damaged"),
    ],
)
def test_a_damaged_folder_is_told_in_a_line(damage, said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"network": "resnet18", "classes": ["a", "b"], "input_size": 16}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    damage(tmp_path)
    with pytest.raises(hpo.InputError, match=said):
        hpo.load_model(tmp_path)


def test_a_killed_export_is_not_mistaken_for_a_finished_one(
    test_images: Split, hpo_here: Hpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def look(*_: object) -> tuple[int, int]:
        seen.append([path.name for path in (tmp_path / "network").iterdir()])
        return 0, len(test_images)

    with monkeypatch.context() as patch:
        patch.setattr("hpo.conclude.exported.folder._count_right", look)
        assert hpo_here("export", "study", "network").returncode == 0
    assert seen == [[]], "files come by one renaming"
    assert (tmp_path / "network" / "README.md").exists()
    assert not list(tmp_path.glob(".network-*"))
