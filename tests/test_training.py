"""Training and evaluation on real digits: reproducible, robust where it should be, right against a slow reference."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.perturbations import perturbations
from torch import nn

from hpo.study_file.images import DataSpec
from hpo.vision.classifier import build_network, fingerprint
from hpo.vision.data.images import ImageSet, Split, load_images
from hpo.vision.device import Compute, choose_compute
from hpo.vision.inference import Inference
from hpo.vision.scoring import build_evaluation_set, evaluate, perturb
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.batches import TrainingImages
from hpo.vision.training.checkpoints import checkpoint_as_bytes, checkpoint_from_bytes
from hpo.vision.training.loop import EpochResult, Training, fine_tune
from hpo.vision.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("narrow_resnets")
PERTURBATIONS = perturbations(sigma=0.3, fraction=0.2)
FP32 = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(scope="module")
def digits(data_root: Path) -> ImageSet:
    data = DataSpec(name="digits", root=str(data_root), validation_fraction=0.06, images_per_class=16)
    return load_images(data, 32, seed=0)


def a_fifth(images: ImageSet) -> ImageSet:
    """For trainings in bf16, which take ten times as long on a CPU that has no instructions for it."""

    def fewer(split: Split) -> Split:
        return replace(split, rows=split.rows[::5], labels=split.labels[::5], keys=split.keys[::5])

    return replace(images, train=fewer(images.train), tuning=fewer(images.tuning))


def start(compute: Compute = FP32, seed: int = 0, frozen: int = 0, **recipe: object) -> Training:
    network = build_network("resnet18", 10, {}, 32, frozen, seed)
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 0.02} | recipe
    augmentation = Augmentation(0.5, PERTURBATIONS, horizontal_flip=False)
    full = Recipe(weight_decay=5e-4, label_smoothing=0.1, augmentation=augmentation, seed=seed, **settings)  # type: ignore[arg-type]
    return Training(network, full, compute)


def go_on(training: Training, digits: ImageSet) -> Iterator[EpochResult]:
    tuning = build_evaluation_set(digits.tuning, PERTURBATIONS, training.compute.device)
    return fine_tune(training, TrainingImages(digits.train, training.compute.device), tuning)


def train(digits: ImageSet, compute: Compute = FP32, **recipe: object) -> list[EpochResult]:
    return list(go_on(start(compute, **recipe), digits))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_same_seed_gives_the_same_accuracies_and_another_seed_others(digits: ImageSet, bf16: bool) -> None:
    compute = Compute(torch.device("cpu"), bf16)
    images = a_fifth(digits) if bf16 else digits
    first, again = train(images, compute), train(images, compute)
    assert [(r.loss, r.accuracies) for r in first] == [(r.loss, r.accuracies) for r in again]
    assert train(images, compute, seed=1)[-1].loss != first[-1].loss


def test_a_cpu_computes_small_images_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 their gradients hold what was in memory before: trainings with one seed were not equal."""
    monkeypatch.setattr("hpo.vision.device.cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [choose_compute(1, size).bf16 for size in (8, 31, 32, 64)] == [False, False, True, True]


def test_it_learns_and_counts_every_image(digits: ImageSet) -> None:
    results = train(digits, epochs=4)
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert list(results[-1].accuracies) == ["clean", "gaussian-noise", "pixel-recolor"]
    assert all(accuracy.total == len(digits.tuning) for accuracy in results[-1].accuracies.values())
    assert results[-1].accuracies["clean"].fraction > 0.5, "chance is 0.1"
    assert results[-1].loss < results[0].loss


def test_a_diverged_training_ends_as_a_bad_result(digits: ImageSet) -> None:
    results = train(digits, learning_rate=1e30, epochs=3)
    assert results[-1].diverged
    assert len(results) < 3
    assert results[-1].accuracies["clean"].fraction < 0.3


@pytest.mark.parametrize(("bf16", "frozen"), [(False, 0), (True, 3)], ids=["fp32", "bf16 frozen"])
def test_a_training_that_goes_on_from_a_checkpoint_gives_what_the_unbroken_one_gives(
    digits: ImageSet, bf16: bool, frozen: int
) -> None:
    compute = Compute(torch.device("cpu"), bf16)
    images = a_fifth(digits) if bf16 else digits
    settings: dict[str, Any] = {"compute": compute, "frozen": frozen, "epochs": 3, "batch_size": 64, "averages": bf16}
    unbroken = start(**settings)
    expected = [(result.loss, result.accuracies) for result in go_on(unbroken, images)]
    broken = start(**settings)
    first = next(go_on(broken, images))
    content = checkpoint_as_bytes(broken.tensors(), {"said": "ünï"})
    resumed = start(**settings)
    checkpoint = checkpoint_from_bytes(content)
    assert checkpoint is not None
    assert checkpoint.header == {"said": "ünï"}
    resumed.restore(checkpoint.tensors)
    rest = [(result.loss, result.accuracies) for result in go_on(resumed, images)]
    assert [(first.loss, first.accuracies), *rest] == expected
    assert fingerprint(resumed.network.state_dict()) == fingerprint(unbroken.network.state_dict())


def test_averaged_weights_have_batchnorm_statistics_of_their_own(digits: ImageSet) -> None:
    training = start(epochs=1)
    list(go_on(training, digits))
    norm = next(m for m in training.averaged.trainable_part.modules() if isinstance(m, nn.BatchNorm2d))
    recipe, inputs = training.recipe, []
    norm.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    keys, pixels = (torch.from_numpy(a) for a in (digits.train.keys, digits.train.pixels[digits.train.rows]))
    training.averaged.trainable_part(training.frozen_part(recipe.augmentation(pixels, keys, recipe.seed, 1)))
    mean = inputs[0].mean((0, 2, 3))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, mean, rtol=0.02, atol=0.002)
    learned = training.network.get_submodule("module.bn1").running_mean
    assert (mean - learned).abs().max() > 5 * (mean - norm.running_mean).abs().max(), "not those of the last weights"


def test_a_damaged_checkpoint_is_none(digits: ImageSet) -> None:
    content = checkpoint_as_bytes(start().tensors(), {})
    for damaged in (b"", content[:7], content[: len(content) // 2], b"x" * 100):
        assert checkpoint_from_bytes(damaged) is None


def test_a_batch_that_does_not_fit_into_memory_is_split() -> None:
    """In a process that may have so little more memory that PyTorch's own allocator refuses the whole batch.

    How much that is differs a little from run to run, and with too little the process cannot live; hence six tries.
    """
    code = """
import resource, sys, torch
from test_training import start
torch.set_num_threads(1)
training = start(batch_size=512)
images, labels = torch.rand(512, 3, 32, 32), torch.arange(512) % 10
start(batch_size=8).runner.run(images[:8], labels[:8])  # what PyTorch sets up once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
training.runner.run(images, labels)
print(training.runner.step.loss_sum.isfinite().item(), 8 <= training.portions.micro_batch < 512, training.was_split)
"""
    for free_mib in ("300", "280", "260", "245", "230", "215"):
        command = [sys.executable, "-c", code, free_mib]
        ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        if ran.stdout.split() == ["True", "True", "True"]:
            return
    pytest.fail(f"no batch was split: {ran.stdout} {ran.stderr}")


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """With BatchNorm in eval mode, since its statistics are those of a micro-batch."""
    images, labels = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    gradients = []
    for micro_batch in (20, 8):
        training = start(batch_size=20)
        training.network.eval()
        training.portions.micro_batch = micro_batch
        training.runner.step.run(images, labels)
        gradients.append((training.runner.step.loss_sum, training.network.module.conv1.weight.grad))
    (loss, whole), (sum_of_losses, in_parts) = gradients
    torch.testing.assert_close(sum_of_losses, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(in_parts, whole, rtol=1e-3, atol=1e-5)


def test_evaluation_agrees_with_a_slow_reference(digits: ImageSet) -> None:
    network = build_network("resnet18", 10, {}, 32, 0, seed=3).eval()
    fast = evaluate(Inference(network, FP32), build_evaluation_set(digits.tuning, PERTURBATIONS, FP32.device))
    correct = dict.fromkeys(fast, 0)
    with torch.no_grad():
        for row, key, label in zip(digits.tuning.rows, digits.tuning.keys, digits.tuning.labels, strict=True):
            pixels = torch.from_numpy(np.array(digits.tuning.pixels[row])).permute(2, 0, 1)[None].float() / 255
            shown = {"clean": pixels}
            for p in PERTURBATIONS:
                name, key_of = p.name, torch.tensor([key])
                perturbed = perturb(type(p), name, pixels, key_of, p.scored_severity, replicate=0)
                shown[name] = (perturbed * 255).round() / 255
            for name, image in shown.items():
                correct[name] += int(network(image).argmax() == label)
    assert {name: accuracy.correct for name, accuracy in fast.items()} == correct


def test_the_tuning_images_are_perturbed_as_the_spec_says(digits: ImageSet) -> None:
    images = build_evaluation_set(digits.tuning, PERTURBATIONS, FP32.device).conditions
    clean = images["clean"].float() / 255
    middle = (clean > 0.45) & (clean < 0.55)
    noise = (images["gaussian-noise"].float() / 255 - clean)[middle]
    assert noise.std().item() == pytest.approx(0.3, abs=0.03)
    share = (images["pixel-recolor"] != images["clean"]).any(1).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.005)


def test_batchnorm_and_biases_have_no_weight_decay() -> None:
    network = build_network("resnet18", 10, {}, 32, 2, seed=0)
    recipe = Recipe(1, 1, 0.1, 5e-4, 0.0, Augmentation(0, [], False), 0)
    (decayed, some_decay), (free, no_decay) = Training(network, recipe, FP32).optimizer.groups
    assert (some_decay, no_decay) == (5e-4, 0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert all("bn" in names[id(p)] or "downsample.1" in names[id(p)] or "bias" in names[id(p)] for p in free)
    assert all("conv" in names[id(p)] or "downsample.0" in names[id(p)] or "fc" in names[id(p)] for p in decayed)
    assert len(decayed) + len(free) == sum(p.requires_grad for p in network.parameters())


def test_trained_weights_differ_only_where_they_may(digits: ImageSet) -> None:
    network = build_network("resnet18", 10, {}, 32, 9, seed=0)
    before = fingerprint({k: t for k, t in network.module.state_dict().items() if not k.startswith("fc.")})
    tuning = build_evaluation_set(digits.tuning, [], FP32.device)
    recipe = Recipe(1, 64, 0.1, 5e-4, 0.0, Augmentation(0, [], False), 0)
    list(fine_tune(Training(network, recipe, FP32), TrainingImages(digits.train, FP32.device), tuning))
    after = fingerprint({k: t for k, t in network.module.state_dict().items() if not k.startswith("fc.")})
    assert after == before
