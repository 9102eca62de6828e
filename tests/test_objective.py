"""The real objective: what it keeps for trials that go on elsewhere, and for workers to come."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_spec

from hpo.artifacts import Artifacts
from hpo.objective import RobustAccuracy
from hpo.search.measurement import Measurement, Trial
from hpo.vision.checkpoints import checkpoint_as_bytes, weights_as_bytes
from hpo.vision.network import build_network
from hpo.vision.probe import fitted_head

DATA = {"name": "digits", "images_per_class": 15, "validation_fraction": 0.1}
PARAMS = {
    "batch_size": 16,
    "learning_rate": 0.05,
    "frozen_layers": 1,
    "augmentation_strength": 0.5,
    "initial_weights": "pretrained",
}


def test_a_trial_that_is_paused_goes_on_as_if_it_had_not_been(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    objective = RobustAccuracy(make_spec(data=DATA), threads=1, artifacts=Artifacts(str(tmp_path)))
    unbroken = [measured.parts for measured in objective.run(Trial(1, PARAMS, baseline=False))]
    assert list(tmp_path.rglob("*.safetensors")), "the last checkpoint, until the trial is discarded"
    objective.discard([1])
    assert not list(tmp_path.rglob("*.safetensors"))

    before = objective.run(Trial(2, PARAMS, baseline=False))
    assert [measured.parts for measured in islice(before, 1)] == unbroken[:1]
    before.close()
    after = list(objective.run(Trial(2, PARAMS, baseline=False, continues=(2,))))
    assert [measured.parts for measured in after] == unbroken
    assert [measured.resumed for measured in after] == [True, False, False]


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """A file with weights of another task."""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_as_bytes(build_network("resnet18", 7, {}, 32, 0, seed=1)))
    return str(file)


def first_epoch(objective: RobustAccuracy) -> Measurement:
    running = objective.run(Trial(1, PARAMS | {"frozen_layers": 8}, baseline=False))
    measured = next(running)
    running.close()
    objective.discard([1])
    return measured


def test_workers_to_come_take_the_fitted_head_of_the_first_and_fit_their_own_where_it_is_not_the_same(
    tmp_path: Path, data_root: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    store = tmp_path / "artifacts"

    def objective(**changes: object) -> RobustAccuracy:
        spec = make_spec(data=DATA, model={"weights": pretrained, "input_size": 32}, **changes)
        return RobustAccuracy(spec, threads=1, artifacts=Artifacts(str(store)))

    expected = first_epoch(objective()).parts
    (kept,) = store.rglob("fitted-head.safetensors")
    content, written = kept.read_bytes(), kept.stat().st_mtime_ns
    assert first_epoch(objective()).parts == expected
    assert kept.stat().st_mtime_ns == written, "it was not fitted again"

    for other in (b"damaged", b"", checkpoint_as_bytes({"fc.bias": torch.zeros(1)}, {"made by": "another"})):
        kept.write_bytes(other)
        assert first_epoch(objective()).parts == expected
        assert kept.read_bytes() == content
    kept.unlink()
    kept.mkdir()
    assert first_epoch(objective()).parts == expected, "where it cannot be kept, each fits its own"
    kept.rmdir()
    next(objective(seed=1).run(Trial(2, PARAMS, baseline=False)))
    assert kept.read_bytes() != content, "another split of the images has another head"


def test_the_head_is_fitted_by_one_of_the_workers_that_start_at_once(
    tmp_path: Path, data_root: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    spec = make_spec(data=DATA, model={"weights": pretrained, "input_size": 32})
    objectives = [RobustAccuracy(spec, threads=1, artifacts=Artifacts(str(tmp_path / "store"))) for _ in range(3)]
    fitted: list[int] = []

    def slowly(network: Any, *given: Any) -> Any:
        fitted.append(len(fitted))
        time.sleep(0.3)
        return fitted_head(network, *given)

    monkeypatch.setattr("hpo.objective.fitted_head", slowly)
    with ThreadPoolExecutor(3) as workers:
        heads = list(workers.map(lambda objective: objective._fitted_head(), objectives))
    assert fitted == [0]
    assert all(torch.equal(head["fc.weight"], heads[0]["fc.weight"]) for head in heads)


def test_a_checkpoint_of_a_study_of_the_same_name_on_other_images_is_not_taken(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))

    def start(images_per_class: int) -> Measurement:
        spec = make_spec(data=DATA | {"images_per_class": images_per_class})
        objective = RobustAccuracy(spec, threads=1, artifacts=Artifacts(str(tmp_path)))
        return next(objective.run(Trial(1, PARAMS, baseline=False, continues=(1,))))

    assert not start(15).resumed
    assert start(15).resumed
    assert not start(10).resumed
