"""Images a second of training trials, by the number of frozen layers: of hpo, of the peers' loop, and of the model step
alone on a batch that lies ready in memory, in hpo's precision: the limit.

    python benchmarks/trial_throughput.py --archive tiny-imagenet-50.zip --weights resnet18.safetensors

Each system as it uses this machine: the plain script one process with all cores and two DataLoader workers; hpo a
worker a core, `hpo run --workers 2` here, and the step alone just so; what is shown is their sum. `step` is PyTorch's
own: torchvision's ResNet-18 under autocast, channels_last, frozen parameters without gradients, cross-entropy,
backward, SGD; `own step` is the same with hpo's convolutions in the place of PyTorch's (which changes nothing where hpo
has none of its own, as in bf16). Whole epochs of batches of 128 at strength 1 (the most work); medians of repetitions,
which take turns.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from real_objective import robust_accuracy
from time_to_target import STUDY, conditions, export_images, overrides
from torch.nn import functional as F
from torchvision.models import resnet18

from hpo.doors.objective import Trial
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec
from hpo.vision.networks.resnet import ResNets
from hpo.vision.training.batches import Batches
from hpo.vision.training.loop import Training
from hpo.vision.winograd import replace_convolutions
from hpo.workers.local import ALLOCATOR, THREAD_VARIABLES

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "trial_throughput.json"
BATCH_SIZE = 128
WARM_UP = 2
SYSTEMS = ("plain", "step", "own step", "hpo")


def rate(step: Callable[[], int], batches: int) -> float:
    """Images a second of so many steps; a step says how many images it took."""
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    images = sum(step() for _ in range(batches))
    return images / (time.perf_counter() - started)


def measure_hpo(spec: Spec, folder: Path, frozen: int, batches: int) -> float:
    objective = robust_accuracy(spec, int(os.environ["HPO_THREADS"]), folder / "artifacts")
    params = {
        "batch_size": BATCH_SIZE,
        "learning_rate": 0.01,
        "frozen_layers": frozen,
        "augmentation_strength": 1.0,
        "initial_weights": "pretrained",
    }
    network = objective.network(params, objective.pretrained)
    recipe = objective.recipe(Trial(0, params, seed=spec.seed, steps=spec.steps))
    training = Training(network, recipe, objective.compute)
    training.network.train()
    prepared = Batches(objective.training_images, recipe.augmentation, training.frozen_part, recipe.seed)
    epochs = (prepared.of_epoch(epoch, BATCH_SIZE, training.portions) for epoch in range(1, 100))
    stream = itertools.chain.from_iterable(epochs)
    training.runner.step.rate.fill_(0.01)
    number = 0

    def step() -> int:
        nonlocal number
        number += 1
        features, labels = next(stream)
        training.runner.run(features, labels)
        if training.average and number % 2 == 0:  # as every 256 images
            training.average.take()
        return len(labels)

    return rate(step, batches)


def measure_step(spec: Spec, folder: Path, frozen: int, batches: int, own: bool = False) -> float:
    compute = robust_accuracy(spec, int(os.environ["HPO_THREADS"]), folder / "artifacts").compute
    model = resnet18(num_classes=50)
    if own:
        replace_convolutions(model)
    model = model.to(memory_format=torch.channels_last).train()
    for unit in ResNets.units(model)[:frozen]:
        unit.requires_grad_(False)
        unit.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, nesterov=True)
    size = spec.model.input_size
    images = torch.rand(BATCH_SIZE, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH_SIZE) % 50

    def step() -> int:
        optimizer.zero_grad()
        with compute.autocast():
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return BATCH_SIZE

    return rate(step, batches)


def measure_plain(spec: Spec, folder: Path, frozen: int, batches: int) -> float:
    """The peers' loop, from its DataLoader on: transforms, model, loss, step; over epochs as they come."""
    sys.path.insert(0, str(HERE / "peers"))
    from fine_tuning import build_model, frozen_units, train_loader

    loader = train_loader(folder / "images", BATCH_SIZE, 1.0, workers=2)
    model = build_model(folder / "images", len(loader.dataset.classes), frozen).train()
    for unit in frozen_units(model, frozen):
        unit.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, nesterov=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    stream = (batch for _ in range(100) for batch in loader)

    def step() -> int:
        images, labels = next(stream)
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
        return len(labels)

    return rate(step, batches)


def measure(system: str, given: argparse.Namespace, folder: Path, frozen: int, cores: int) -> float:
    """In processes of their own; the sum over those that run at once."""
    processes = 1 if system == "plain" else cores
    threads = str(cores // processes)
    environment = os.environ | dict.fromkeys((*THREAD_VARIABLES, "HPO_THREADS"), threads)
    if system != "plain":  # the limit has what hpo's launcher gives its workers
        environment |= ALLOCATOR
    command = [sys.executable, __file__, "--measure", system, "--folder", str(folder), "--frozen", str(frozen)]
    command += ["--batches", str(given.batches), "--images-per-class", str(given.images_per_class)]
    command += ["--archive", given.archive] if given.archive else []
    command += ["--weights", given.weights] if given.weights else []
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(process.communicate()[0].split()[-1]) for process in running)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=os.path.abspath)
    parser.add_argument("--weights", type=os.path.abspath)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--batches", type=int, default=40, help="about an epoch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--frozen", type=int, nargs="+", default=[0, 3, 6, 9])
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    spec = load_spec(STUDY, overrides(given, seed=0, epochs=1))
    if given.measure:
        own_step = partial(measure_step, own=True)
        does = {"plain": measure_plain, "step": measure_step, "own step": own_step, "hpo": measure_hpo}[given.measure]
        print(does(spec, given.folder, given.frozen[0], given.batches))
        return
    cores = len(os.sched_getaffinity(0))
    rates = {frozen: {system: [] for system in SYSTEMS} for frozen in given.frozen}
    print("images a second, medians\nfrozen   plain    step  own step     hpo   of step  of own step  times plain")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_images(spec, folder / "images")
        for frozen in given.frozen:
            for _ in range(given.repetitions):
                for system in SYSTEMS:
                    rates[frozen][system].append(round(measure(system, given, folder, frozen, cores), 1))
            plain, step, own_step, hpo = (statistics.median(rates[frozen][system]) for system in SYSTEMS)
            shown = f"{plain:7.0f} {step:7.0f} {own_step:9.0f} {hpo:7.0f}"
            ratios = f"{hpo / step:9.0%} {hpo / own_step:12.0%} {hpo / plain:12.2f}"
            print(f"{frozen:6} {shown} {ratios}", flush=True)
    kept = {"conditions": conditions(given) | {"batch_size": BATCH_SIZE}, "images_per_second": rates}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
