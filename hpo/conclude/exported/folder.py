"""Writes the best network of a study into a folder: weights, classes, preprocessing, configuration, card."""

import json
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
import torch

from hpo.artifacts import Artifacts
from hpo.conclude.exported.card import model_card
from hpo.conclude.exported.loading import CONFIG_FILE, MODEL_FILE, load_model
from hpo.conclude.report.facts import Facts
from hpo.doors.network import family_of
from hpo.errors import InputError
from hpo.search.kept_files import read_weights
from hpo.study_file.images import ImageSpec
from hpo.study_file.reading import trial_as_toml
from hpo.vision.classifier import Classifier
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.torchvision_network import TorchvisionNetwork

PREDICT_FILE = "predict.py"
ONNX_FILE = "model.onnx"


def write_network(
    engine: sa.Engine, facts: Facts, artifacts: Artifacts, folder: Path, onnx: bool, say: Callable[[str], None]
) -> None:
    """Into an empty folder. Raises InputError for other objectives, HpoError if weights or images are out of reach, and
    OSError.
    """
    spec = facts.study.spec
    if not isinstance(spec, ImageSpec):
        raise InputError(f"study '{facts.study.name}' has no network to export: its objective is {spec.objective_name}")
    study, number = facts.weights_kept_by["best"]
    weights = read_weights(engine, study, number, artifacts)
    images = load_images(spec.data, spec.model.input_size, spec.split_seed)
    family = family_of(spec.model.name)
    mean, std = family.normalisation(spec.model.name)
    is_torchvisions = issubclass(family, TorchvisionNetwork)
    config = {
        "network": spec.model.name,
        "arguments": family.arguments(spec.model.input_size) if issubclass(family, TorchvisionNetwork) else {},
        "classes": list(images.classes),
        "names": list(images.names),
        "image_size": int(images.test.pixels.shape[1]),
        "input_size": spec.model.input_size,
        "mean": list(mean),
        "std": list(std),
        "study": facts.study.name,
        "trial": facts.best.number,
        "seed": _seed(facts),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / MODEL_FILE).write_bytes(weights)
    study_file = trial_as_toml(facts.study.spec, facts.best.number, facts.best.params)
    (folder / "study.toml").write_text(study_file, encoding="utf-8")
    if is_torchvisions:
        (folder / PREDICT_FILE).write_text((Path(__file__).parent / PREDICT_FILE).read_text(encoding="utf-8"))
    network = load_model(folder)
    say("scoring the exported network on the test images")
    right = _count_right(network, images)
    card = model_card(facts, spec, folder.name, images.classes, right, is_torchvisions)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if onnx:
        _write_onnx(network, folder / ONNX_FILE, spec.model.input_size)


def _seed(facts: Facts) -> int:
    """Of the training whose weights are exported."""
    confirmation = facts.confirmation.confirmation if facts.confirmation and facts.confirmed else None
    if confirmation is None or facts.confirmed is None:
        return facts.study.spec.seed
    return confirmation.seeds_of(facts.confirmed.candidates[0].configuration)[0]


@torch.no_grad()
def _count_right(network: Classifier, images: ImageSet) -> tuple[int, int]:
    """In fp32, as the exported files alone give it."""
    test, right = images.test, 0
    for start in range(0, len(test), 250):
        rows = test.rows[start : start + 250]
        pixels = torch.from_numpy(test.pixels[rows]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(test.labels[start : start + 250])
        right += int((network(pixels).argmax(1) == labels).sum())
    return right, len(test)


def check_onnx() -> None:
    """Raises InputError without the packages that PyTorch's exporter needs."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("--onnx needs other packages: pip install onnx onnxscript") from None


def _write_onnx(network: Classifier, file: Path, size: int) -> None:
    """From images of the network's own size, float32 in [0, 1] (n, 3, size, size), to logits."""
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("n", min=1)
    torch.onnx.export(
        network,
        (example,),
        str(file),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes={"pixels": {0: batch}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
