"""The real objective: what it keeps for trials that go on elsewhere, and for workers to come."""

import gc
import json
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Hpo
from support.studies import make_spec, write_study

import hpo.objectives.robust_accuracy
from hpo.artifacts import Artifacts
from hpo.doors.objective import Context, Measurement, Trial
from hpo.errors import MachineError
from hpo.objectives.robust_accuracy import RobustAccuracy
from hpo.search import checkpoints, provenance
from hpo.search.checkpoints import StudyFolder
from hpo.study_file.images import ImageSpec
from hpo.study_file.reading import read_kept_spec
from hpo.study_file.spec import Spec
from hpo.vision import scoring
from hpo.vision.classifier import build_network, read_weights
from hpo.vision.memory import is_device_failure, is_out_of_memory
from hpo.vision.training import loop
from hpo.vision.training.checkpoints import checkpoint_as_bytes, weights_as_bytes
from hpo.vision.training.head import fitted_head

pytestmark = pytest.mark.usefixtures("narrow_resnets")
DATA = {"name": "digits", "images_per_class": 8, "validation_fraction": 0.05}
PARAMS = {
    "batch_size": 16,
    "learning_rate": 0.05,
    "frozen_layers": 1,
    "augmentation_strength": 0.5,
    "initial_weights": "pretrained",
}


def made(spec: Spec, folder: Path) -> RobustAccuracy:
    store = StudyFolder(Artifacts(str(folder)), spec.folder_name)
    return RobustAccuracy(spec.objective, Context(spec.seed, 1, spec, store, print))


def trial(number: int = 1, checkpoint: bytes | None = None, seed: int = 0, **params: object) -> Trial:
    return Trial(number, PARAMS | params, seed=seed, steps=3, checkpoint=checkpoint)  # type: ignore[arg-type]


def content_of(measured: Measurement) -> bytes:
    assert callable(measured.checkpoint)
    return measured.checkpoint()()


def test_a_trial_goes_on_from_a_checkpoint_as_if_it_had_not_been_left(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    objective = made(make_spec(data=DATA), tmp_path)
    unbroken = [measured.parts for measured in objective.run(trial())]
    (first,) = islice(objective.run(trial(2)), 1)
    assert first.parts == unbroken[0]
    after = list(objective.run(trial(2, content_of(first))))
    assert [(measured.step, measured.parts) for measured in after] == list(enumerate(unbroken[1:], 2))


def test_what_does_not_count_in_the_score_is_measured_when_a_training_ends(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    noise = {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.5}
    fog = {"name": "fog", "level": 3, "weight": 0.0}

    def measured(*perturbations: dict[str, Any]) -> list[Measurement]:
        augmentation = {"perturbations": [{"name": "gaussian-noise", "sigma": 0.3}]}
        objective = {"clean": 0.5, "perturbations": list(perturbations)}
        spec = make_spec(data=DATA, objective=objective, augmentation=augmentation)
        return list(made(spec, tmp_path).run(trial()))

    alone, beside = measured(noise), measured(noise, fog)
    assert [each.score for each in beside] == [each.score for each in alone]
    assert [set(each.parts) for each in beside] == [{"clean", "gaussian-noise"}] * 2 + [
        {"clean", "gaussian-noise", "fog"}
    ]


def test_a_worker_that_has_gone_on_to_other_studies_holds_nothing_of_it(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    objective = made(make_spec(data=DATA), tmp_path)
    next(iter(objective.run(trial())))
    held = weakref.ref(objective)
    del objective
    gc.collect()  # as a worker does
    assert held() is None


def test_a_damaged_checkpoint_is_a_new_beginning(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    objective = made(make_spec(data=DATA), tmp_path)
    assert next(iter(objective.run(trial(checkpoint=b"damaged")))).step == 1


def test_a_trial_has_a_seed_and_a_split_of_its_own(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images' split stays as it is, whatever the seed."""
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    objective = made(make_spec(data=DATA), tmp_path)
    first, again, other = (next(iter(objective.run(trial(seed=seed)))) for seed in (0, 0, 1))
    assert content_of(first) == content_of(again)
    assert content_of(first) != content_of(other)
    test = next(iter(objective.run(replace(trial(), split="test"))))
    assert test.attributes["images"] == len(objective.images.test)
    assert first.attributes["images"] == len(objective.images.tuning)


@pytest.mark.parametrize("split_seed", [None, 7])
def test_the_seed_of_the_study_does_not_move_the_images(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, split_seed: int | None
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    data = DATA if split_seed is None else DATA | {"split_seed": split_seed}
    rows = [made(make_spec(data=data, seed=seed), tmp_path).images.tuning.rows.tolist() for seed in (0, 5)]
    assert rows[0] == rows[1]
    old = read_kept_spec(json.dumps(make_spec(seed=5).model_dump(mode="json") | {"data": DATA}))
    assert isinstance(old, ImageSpec)
    assert old.split_seed == 5, "a study of an older hpo keeps the split that it began with"


def test_the_best_trial_keeps_pictures_and_weights(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    files = next(iter(made(make_spec(data=DATA), tmp_path).run(trial()))).keep()
    assert files.keys() == {"training-curve.png", "predictions.png", "weights.safetensors"}
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(files["weights.safetensors"])
    assert "fc.weight" in read_weights("resnet18", str(weights))


def test_a_search_that_starts_from_the_baselines_weights(hpo_here: Hpo, tmp_path: Path) -> None:
    search = {"initial_weights": "baseline", "learning_rate": {"low": 0.01, "high": 0.03}, "batch_size": 16}
    data = {"name": "digits", "images_per_class": 30, "validation_fraction": 0.05}  # enough for the baseline to learn
    hpo_here("submit", write_study(tmp_path, budget=2, search=search, data=data))
    ran = hpo_here("worker", "study")
    assert ran.returncode == 0, ran.stderr
    top = json.loads(hpo_here("top", "study", "--json").stdout)
    later = [trial for trial in top if not trial["baseline"]]
    assert {trial["params"]["initial_weights"] for trial in later} == {"baseline"}
    assert (tmp_path / "hpo-artifacts" / "study" / "baseline.safetensors").exists()
    baseline = next(trial for trial in top if trial["baseline"])
    assert min(trial["epochs"][0]["clean"] for trial in later) > baseline["epochs"][0]["clean"]


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """A file with weights of another task."""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_as_bytes(build_network("resnet18", 7, {}, 32, 0, seed=1)))
    return str(file)


def first_epoch(objective: RobustAccuracy) -> Measurement:
    return next(iter(objective.run(trial(frozen_layers=8))))


def test_workers_to_come_take_the_fitted_head_of_the_first_and_fit_their_own_where_it_is_not_the_same(
    tmp_path: Path, data_root: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    store = tmp_path / "artifacts"

    def objective(**changes: object) -> RobustAccuracy:
        spec = make_spec(**{"data": DATA, "model": {"weights": pretrained, "input_size": 32}} | changes)
        return made(spec, store)

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
    other = objective(data=DATA | {"split_seed": 1})
    next(iter(other.run(trial(2))))
    assert kept.read_bytes() != content, "another split of the images has another head"


def test_the_head_is_fitted_by_one_of_the_workers_that_start_at_once(
    tmp_path: Path, data_root: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    spec = make_spec(data=DATA, model={"weights": pretrained, "input_size": 32})
    objectives = [made(spec, tmp_path / "store") for _ in range(3)]
    fitted: list[int] = []

    def slowly(network: Any, *given: Any) -> Any:
        fitted.append(len(fitted))
        time.sleep(0.3)
        return fitted_head(network, *given)

    monkeypatch.setattr("hpo.objectives.robust_accuracy.fitted_head", slowly)
    with ThreadPoolExecutor(3) as workers:
        heads = list(workers.map(lambda objective: objective.fitted_head(), objectives))
    assert fitted == [0]
    assert all(torch.equal(head["fc.weight"], heads[0]["fc.weight"]) for head in heads)


def test_a_checkpoint_of_a_study_of_the_same_name_on_other_images_is_not_taken(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    folder = StudyFolder(Artifacts(str(tmp_path)), "study")

    def identity(images_per_class: int) -> str:
        spec = make_spec(data=DATA | {"images_per_class": images_per_class})
        return checkpoints.identity(spec, made(spec, tmp_path), PARAMS)

    measured = Measurement(1, 0.5, {"clean": 0.5}, checkpoint=b"content")
    checkpoints.taking(folder, trial(), (), identity(15), measured, [{"step": 1, "score": 0.5}])()()
    found = checkpoints.load(folder, (1,), identity(15))
    assert found is not None
    assert (found.content, found.reports) == (b"content", [{"step": 1, "score": 0.5}])
    assert checkpoints.load(folder, (1,), identity(10)) is None
    (file,) = tmp_path.rglob("trial-1.checkpoint")
    file.write_bytes(file.read_bytes()[:30])
    assert checkpoints.load(folder, (1,), identity(15)) is None, "damaged"


CUDA_ERRORS = {
    "CUDA error: out of memory": "memory",
    "CUBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": "memory",
    "CUDA error: an illegal memory access was encountered": "device",
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported": "device",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "device",
    "mat1 and mat2 shapes cannot be multiplied": "bug",
}


@pytest.mark.parametrize(("words", "kind"), CUDA_ERRORS.items())
def test_what_a_device_says_is_told_apart(words: str, kind: str) -> None:
    wrapped = ValueError("in the step")
    wrapped.__cause__ = RuntimeError(words)
    for error in (RuntimeError(words), wrapped):
        found = {"memory": is_out_of_memory(error), "device": is_device_failure(error)}
        assert found == {"memory": kind == "memory", "device": kind == "device"}


@pytest.mark.parametrize(
    ("where", "words", "expected"),
    [
        ("step", "CUDA error: an illegal memory access was encountered", MachineError),
        ("scoring", "CUDA error: an illegal memory access was encountered", MachineError),
        ("building", "CUDA out of memory", MachineError),
        ("building", "CUDA error: an illegal memory access was encountered", MachineError),
        ("head", "CUBLAS_STATUS_ALLOC_FAILED", MachineError),
        ("step", "CUBLAS_STATUS_NOT_INITIALIZED", MachineError),
    ],
)
def test_a_device_that_fails_is_no_fault_of_the_configuration(
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretrained: str,
    where: str,
    words: str,
    expected: type[Exception],
) -> None:
    """Nor is what any configuration would need too much memory for."""
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    model = {"weights": pretrained, "input_size": 32}
    objective = made(make_spec(data=DATA, model=model), tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    place = {
        "step": (loop.Step, "run"),
        "scoring": (scoring, "_count_correct"),
        "building": (hpo.objectives.robust_accuracy, "Training"),
        "head": (hpo.objectives.robust_accuracy, "fitted_head"),
    }[where]
    monkeypatch.setattr(*place, fail)
    with pytest.raises(expected, match=words):
        first_epoch(objective)


def test_scoring_takes_fewer_images_at_once_when_memory_is_short() -> None:
    images = torch.rand(100, 3, 8, 8)
    tuning = scoring.EvaluationSet({"clean": images, "noise": images}, torch.arange(100) % 10, at_once=64)
    sizes: list[int] = []

    def classify(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.functional.one_hot(torch.arange(len(batch)) % 10, 10)

    assert scoring.evaluate(classify, tuning)["clean"].total == 100
    assert max(sizes) == 64
    assert sizes[-1] <= 16


@pytest.mark.parametrize("git", ["missing", "failing", "silent"])
def test_a_checkout_without_a_git_that_works_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str
) -> None:
    if git != "missing":
        program = tmp_path / "git"
        program.write_text("#!/bin/sh\n" + ("exit 128\n" if git == "failing" else "exec sleep 60\n"))
        program.chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECS", 0.3)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if git == "silent" else str(tmp_path))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "hpo" / "search" / "provenance.py"))
    (tmp_path / "hpo").mkdir()
    (tmp_path / ".git").mkdir()
    assert provenance.commit() is None
