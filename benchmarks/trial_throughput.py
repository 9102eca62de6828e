"""Images a second within a trial's training, by the number of frozen layers: of hpo, of the peers' loop, and of the
model step alone on batches that lie ready in memory, in hpo's precision: the limit.

    python benchmarks/trial_throughput.py --archive tiny-imagenet-50.zip --weights resnet18.safetensors

`step` is PyTorch's own: torchvision's ResNet-18 under autocast, channels_last, frozen parameters without gradients,
cross-entropy, backward, SGD. `hpo's step` is hpo's own update on such batches, with its folded frozen part. Both
threads, batches of 128, strength 1 (the most work), medians of the repetitions, which take turns.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from time_to_target import STUDY, conditions, export_images, overrides
from torch.nn import functional as F
from torchvision.models import resnet18

from hpo.artifacts import Artifacts
from hpo.objective import RobustAccuracy
from hpo.spec import load_spec
from hpo.vision.network import units
from hpo.vision.training import Training, _Batches, _update

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 128
RESULT = HERE / "results" / "trial_throughput.json"


def rate(step: Callable[[int], int], batches: int) -> float:
    """Images a second of step(number of the batch) -> how many images."""
    step(0)
    started = time.perf_counter()
    images = sum(step(number) for number in range(1, batches + 1))
    return images / (time.perf_counter() - started)


def hpo_training(objective: RobustAccuracy, frozen: int) -> Training:
    params = {
        "batch_size": BATCH_SIZE,
        "learning_rate": 0.01,
        "frozen_layers": frozen,
        "augmentation_strength": 1.0,
        "initial_weights": "pretrained",
    }
    return Training(objective._network(params, objective.pretrained), objective._recipe(params), objective.compute)


def measure_hpo(objective: RobustAccuracy, frozen: int, batches: int) -> float:
    training = hpo_training(objective, frozen)
    training.network.train()
    stream = _Batches(objective.images.train, objective.compute.device).of_epoch(training.recipe, 1)

    def step(_: int) -> int:
        images, labels = next(stream)
        _update(training, images, labels, 0.5)
        return len(labels)

    return rate(step, batches)


def measure_hpo_step(objective: RobustAccuracy, frozen: int, batches: int) -> float:
    training = hpo_training(objective, frozen)
    training.network.train()
    images, labels = next(_Batches(objective.images.train, objective.compute.device).of_epoch(training.recipe, 1))

    def step(_: int) -> int:
        _update(training, images, labels, 0.5)
        return len(labels)

    return rate(step, batches)


def measure_step(objective: RobustAccuracy, frozen: int, batches: int) -> float:
    model = resnet18(num_classes=len(objective.images.classes)).to(memory_format=torch.channels_last).train()
    for unit in units(model)[:frozen]:
        unit.requires_grad_(False)
        unit.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, nesterov=True)
    size = objective.spec.model.input_size
    images = torch.rand(BATCH_SIZE, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH_SIZE) % len(objective.images.classes)

    def step(_: int) -> int:
        optimizer.zero_grad()
        with objective.compute.autocast():
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return BATCH_SIZE

    return rate(step, batches)


def measure_plain(folder: Path, frozen: int, batches: int) -> float:
    """The peers' loop, from its DataLoader on: transforms, model, loss, step."""
    sys.path.insert(0, str(HERE / "peers"))
    from fine_tuning import build_model, frozen_units, train_loader

    loader = train_loader(folder, BATCH_SIZE, 1.0, workers=2)
    model = build_model(folder, len(loader.dataset.classes), frozen).train()
    for unit in frozen_units(model, frozen):
        unit.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, nesterov=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    stream = iter(loader)

    def step(_: int) -> int:
        images, labels = next(stream)
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
        return len(labels)

    return rate(step, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=os.path.abspath)
    parser.add_argument("--weights", type=os.path.abspath)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--frozen", type=int, nargs="+", default=[0, 3, 6, 9])
    given = parser.parse_args()
    given.epochs, given.minutes = 1, 0
    spec = load_spec(STUDY, overrides(given, seed=0))
    rates: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        objective = RobustAccuracy(spec, len(os.sched_getaffinity(0)), Artifacts(str(folder / "artifacts")))
        export_images(spec, folder / "images")
        for frozen in given.frozen:
            rates[frozen] = {"plain": [], "step": [], "hpo's step": [], "hpo": []}
            for _ in range(given.repetitions):
                rates[frozen]["plain"].append(measure_plain(folder / "images", frozen, given.batches))
                rates[frozen]["step"].append(measure_step(objective, frozen, given.batches))
                rates[frozen]["hpo's step"].append(measure_hpo_step(objective, frozen, given.batches))
                rates[frozen]["hpo"].append(measure_hpo(objective, frozen, given.batches))
    print("images a second, medians\nfrozen   plain    step  hpo's step     hpo   of step  of hpo's step  times plain")
    for frozen, by_system in rates.items():
        plain, step, own_step, hpo = (statistics.median(values) for values in by_system.values())
        print(
            f"{frozen:6} {plain:7.0f} {step:7.0f} {own_step:11.0f} {hpo:7.0f} {hpo / step:8.0%} "
            f"{hpo / own_step:14.0%} {hpo / plain:12.2f}"
        )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    kept = {"conditions": conditions(given) | {"threads": torch.get_num_threads(), "batch_size": BATCH_SIZE}}
    RESULT.write_text(json.dumps(kept | {"images_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
