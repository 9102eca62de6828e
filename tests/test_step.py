"""The training step, and that a GPU could replay it: nothing moves in memory, nothing is read from the device, no shape
depends on values. What needs a GPU itself is in benchmarks/gpu.py; here a recorder that runs what it has recorded.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.perturbations import perturbations
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hpo.vision.classifier import build_network, fingerprint
from hpo.vision.data.images import Split
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.scoring import EvaluationSet, evaluate
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.averaging import measure_batch_norms
from hpo.vision.training.batches import Batches, TrainingImages
from hpo.vision.training.loop import EpochResult, Training, features_for_batch_norms, fine_tune
from hpo.vision.training.optimizers import MOMENTUM
from hpo.vision.training.recipe import Recipe
from hpo.vision.training.step import jensen_shannon

pytestmark = pytest.mark.usefixtures("narrow_resnets")
PERTURBATIONS = perturbations(sigma=0.3, fraction=0.2)
CPU = torch.device("cpu")
FP32 = Compute(CPU, bf16=False)
BF16 = Compute(CPU, bf16=True)
BATCH = 8
READS_OR_RESIZES = {
    "aten._local_scalar_dense",
    "aten.item",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten.bincount",
    "aten.is_nonzero",
    "aten.equal",
    "aten.repeat_interleave",
}


def some_images(count: int = 21) -> Split:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(count)
    return Split(pixels, rows, rows % 5, rows)


def training_images() -> TrainingImages:
    return TrainingImages(some_images(), CPU)


def tuning_images(device: torch.device = CPU) -> EvaluationSet:
    images = some_images()
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).to(device)
    return EvaluationSet({"clean": pixels, "noisy": pixels.flip(0)}, torch.from_numpy(images.labels).to(device))


def start(
    compute: Compute = FP32,
    frozen: int = 0,
    recorder: Any = None,
    epochs: int = 2,
    consistency: float = 0.0,
    splits_statistics: bool = False,
    **augmented: Any,
) -> Training:
    network = build_network("resnet18", 5, {}, 32, frozen, seed=0)
    augmentation = Augmentation(1.0, PERTURBATIONS, horizontal_flip=True, **augmented)
    recipe = Recipe(epochs, BATCH, 0.05, 5e-4, 0.1, augmentation, seed=0, consistency=consistency)
    return Training(network, replace(recipe, splits_statistics=splits_statistics), compute, recorder)


def results(training: Training) -> list[tuple[float, dict[str, int]]]:
    return [said(result) for result in fine_tune(training, training_images(), tuning_images())]


def said(result: EpochResult) -> tuple[float, dict[str, int]]:
    return result.loss, {name: accuracy.correct for name, accuracy in result.accuracies.items()}


def a_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    features = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return features.contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 5


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_step_is_a_plain_update_to_the_last_bit(compute: Compute) -> None:
    """As a script has it: the rate a number, momentum made by the first step."""
    training, plain = start(compute), start(compute)
    part = plain.network.trainable_part
    groups = [{"params": parameters, "weight_decay": decay} for parameters, decay in plain.optimizer.groups]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM, nesterov=True, fused=True)
    losses = 0.0
    for number, rate in enumerate((0.03, 0.1 / 3, 0.05, 0.007)):
        features, labels = a_batch(number)
        training.runner.step.rate.fill_(rate)
        training.runner.run(features, labels)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with compute.autocast():
            loss = F.cross_entropy(part(features), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses += loss.item() * BATCH
    assert fingerprint(training.network.state_dict()) == fingerprint(plain.network.state_dict())
    assert float(training.runner.step.loss_sum) == losses


def test_nothing_that_a_step_reads_or_changes_moves_in_memory() -> None:
    training = start(frozen=2)
    assert training.average is not None

    def places() -> list[int]:
        averaged = training.averaged.trainable_part
        kept = [*training.runner.step.changes(), *averaged.parameters(), *averaged.buffers()]
        return [tensor.data_ptr() for tensor in [*kept, training.runner.step.rate]]

    before = places()
    results(training)
    assert places() == before
    training.restore({name: tensor.clone() for name, tensor in training.tensors().items()})
    assert places() == before


class Watched(TorchDispatchMode):
    """Fails where a value is read on the host, or a shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        assert name not in READS_OR_RESIZES, f"{func} waits for the device"
        if name.startswith("aten.index"):
            indices = [i for a in args if isinstance(a, list | tuple) for i in a if isinstance(i, Tensor)]
            assert all(index.dtype != torch.bool for index in indices), f"{func} has a shape that depends on values"
        return func(*args, **(kwargs or {}))


def an_epochs_work(training: Training, device: torch.device, watched: Callable[[], Any]) -> dict[str, Any]:
    """What `fine_tune` does in an epoch until it reads results; what is planned on the CPU is not watched. Gives all
    that was made.
    """
    images = some_images()
    with watched():
        pixels = torch.from_numpy(images.pixels).to(device)
        labels = torch.from_numpy(images.labels).to(device)
        frozen_part = Inference(training.network.frozen_part, training.compute)
        scored = Inference(training.averaged.trainable_part, training.compute)
    plan = training.recipe.augmentation.plan(torch.from_numpy(images.keys), 0, 1)
    assert all(plan.counts), "both perturbations are there"
    with watched():
        features = frozen_part(training.recipe.augmentation.apply(pixels, plan))
        step = training.runner.step
        for some, right in zip(features.split(BATCH), labels.split(BATCH), strict=True):
            step.rate.fill_(0.01)
            training.runner.run(some, right)
            assert training.average is not None
            training.average.take()
        measure_batch_norms(training.averaged.trainable_part, features.split(BATCH), training.compute)
        scored.refill()
        assert scored(features).shape == (len(labels), 5)
    return locals()


@pytest.mark.parametrize(("frozen", "augmented"), [(0, {}), (3, {"perturbed_area": 0.3, "severity_draw": "beta"})])
def test_an_epoch_reads_nothing_from_the_device_and_no_shape_in_it_depends_on_values(
    frozen: int, augmented: dict[str, Any]
) -> None:
    an_epochs_work(start(frozen=frozen, **augmented), CPU, Watched)


def test_the_watch_sees_what_it_should() -> None:
    some = torch.arange(4.0)
    for wrong in (
        some[0].item,
        some.nonzero,
        lambda: some[some > 1],
        lambda: torch.optim.swa_utils.update_bn([torch.rand(2, 3, 4, 4)], nn.BatchNorm2d(3)),
    ):
        with pytest.raises(AssertionError), Watched():
            wrong()


@pytest.mark.parametrize("frozen", [0, 2])
def test_an_epoch_could_run_on_a_gpu(frozen: int) -> None:
    """In a process of its own: PyTorch may crash where it clears such tensors away."""
    command = [sys.executable, str(Path(__file__).parent / "epoch_without_values.py"), str(frozen)]
    for _ in range(3):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode >= 0:  # what it finds wrong is an exit code, not a signal
            break
    assert ran.stdout == "an epoch could run on a GPU\n", ran.stderr


class Called:
    """A recorder that warms nothing up, and whose recording is the step itself."""

    def warm_up(self, run: Callable[[], None]) -> None:
        pass

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


class Recorder(Called):
    """Runs twice to warm up, and keeps a diary; fails as it is told."""

    def __init__(self, training: Callable[[], Training], fails: list[str] | None = None) -> None:
        self.training = training
        self.fails = fails or []
        self.diary: list[str] = []

    def warm_up(self, run: Callable[[], None]) -> None:
        self.before = fingerprint(self.training().tensors())
        run()
        assert fingerprint(self.training().tensors()) != self.before
        run()
        self._say("warmed up")

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        assert fingerprint(self.training().tensors()) == self.before, "the warm-up was undone"
        assert float(self.training().runner.step.loss_sum) == 0
        self._say("recorded")

        def replay() -> None:
            self.diary.append("replayed")
            run()

        return replay

    def _say(self, what: str) -> None:
        self.diary.append(what)
        if self.fails and self.fails[0].startswith(what):
            raise RuntimeError(self.fails.pop(0).removeprefix(what))


def recorded(fails: list[str] | None = None, **settings: Any) -> tuple[Training, list[str]]:
    trainings: list[Training] = []
    recorder = Recorder(lambda: trainings[0], fails)
    trainings.append(start(recorder=recorder, **settings))
    return trainings[0], recorder.diary


@pytest.mark.parametrize(("frozen", "more"), [(0, {}), (3, {}), (3, {"consistency": 6.0, "splits_statistics": True})])
def test_replayed_training_gives_what_called_training_gives(frozen: int, more: dict[str, Any]) -> None:
    called = start(frozen=frozen, **more)
    training, diary = recorded(frozen=frozen, **more)
    assert results(training) == results(called)
    assert fingerprint(training.tensors()) == fingerprint(called.tensors())
    # 21 images: two whole batches an epoch, and a last one of five that is called
    assert diary == ["warmed up", "recorded", *["replayed"] * 4]
    assert training.runner.how == "replayed"
    assert called.runner.how == "called"


def test_replayed_training_that_goes_on_gives_what_the_unbroken_one_gives() -> None:
    expected = results(recorded(epochs=3)[0])
    broken, _ = recorded(epochs=3)
    epochs = fine_tune(broken, training_images(), tuning_images())
    first = said(next(epochs))
    kept = {name: tensor.clone() for name, tensor in broken.tensors().items()}
    resumed, diary = recorded(epochs=3)
    resumed.restore(kept)
    assert [first, *results(resumed)] == expected
    assert diary[:2] == ["warmed up", "recorded"]


@pytest.mark.parametrize("when", ["warmed up", "recorded"])
def test_memory_that_is_short_shows_before_anything_is_replayed_and_splits_batches(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = " can't allocate memory"
    monkeypatch.setattr("hpo.vision.memory.SMALLEST_PORTION", 2)
    training, diary = recorded([when + short])
    found = results(training)
    first = ["warmed up"] if when == "warmed up" else ["warmed up", "recorded"]
    assert diary == [*first, "warmed up", "recorded", *["replayed"] * 4]
    assert training.portions.micro_batch == BATCH // 2
    assert training.was_split
    by_hand = start()
    by_hand.portions.micro_batch = BATCH // 2
    assert found == results(by_hand)


def test_a_step_that_cannot_be_recorded_is_called_and_says_why() -> None:
    training, diary = recorded(["recorded operation not permitted when stream is capturing"])
    assert results(training) == results(start())
    assert diary == ["warmed up", "recorded"]
    assert training.runner.how == "called:  operation not permitted when stream is capturing"


def test_batches_do_not_depend_on_how_many_are_prepared_at_once() -> None:
    images, training = training_images(), start(frozen=0)
    batches = Batches(images, training.recipe.augmentation, training.frozen_part, seed=0)
    expected = list(batches.of_epoch(1, BATCH, training.portions))
    assert [len(labels) for _, labels in expected] == [8, 8, 5]
    for at_once in (1, 3, 16, 40, 10_000):
        training.portions.prepared = at_once
        given = list(batches.of_epoch(1, BATCH, training.portions))
        for (features, labels), (others, others_labels) in zip(expected, given, strict=True):
            assert torch.equal(features, others)
            assert torch.equal(labels, others_labels)
            assert others.is_contiguous(memory_format=torch.channels_last)


def test_twins_are_flipped_and_cropped_as_their_images_and_not_perturbed() -> None:
    images, training = training_images(), start(frozen=2)
    augmentation, portions = training.recipe.augmentation, training.portions
    plain = replace(augmentation, strength=0.0)
    given, expected, unperturbed = (
        list(Batches(images, each, training.frozen_part, seed=0, twins=twins).of_epoch(1, BATCH, portions))
        for each, twins in ((augmentation, True), (augmentation, False), (plain, False))
    )
    for (features, labels), (first, right), (second, _) in zip(given, expected, unperturbed, strict=True):
        assert torch.equal(features, torch.cat([first, second]))
        assert torch.equal(labels, right)
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_consistency_is_added_to_the_loss_as_in_augmix() -> None:
    training, plain = start(consistency=6.0), start()
    images, labels = a_batch(0)
    twins, _ = a_batch(1)
    for some in (training, plain):
        some.network.eval()
        some.runner.step.rate.fill_(0.0)
    logits, of_twins = (plain.network.trainable_part(each) for each in (images, twins))
    probabilities = logits.softmax(1), of_twins.softmax(1)
    mixture = ((probabilities[0] + probabilities[1]) / 2).log()
    divergence = sum(F.kl_div(mixture, each, reduction="batchmean") for each in probabilities) / 2
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + 6 * divergence
    loss.backward()
    for micro_batch in (BATCH, 3):
        training.portions.micro_batch = micro_batch
        training.runner.step.loss_sum.zero_()
        with Watched():
            training.runner.step.run(torch.cat([images, twins]), labels)
        assert training.runner.step.loss_sum.item() == pytest.approx(BATCH * loss.item(), rel=1e-5)
        gradients = [some.network.module.conv1.weight.grad for some in (training, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_split_statistics_are_of_each_kind_alone_and_the_twins_are_kept(compute: Compute) -> None:
    training, plain, clean = (start(compute, frozen=1, splits_statistics=split) for split in (True, False, False))
    (images, labels), (twins, _) = ((each.repeat(1, 3, 1, 1)[:, :8], y) for each, y in (a_batch(0), a_batch(1)))
    training.runner.step.rate.fill_(0.0)
    with Watched():
        training.runner.run(torch.cat([images, twins]), labels)
    part = plain.network.trainable_part
    losses = []
    for some in (images, twins):
        with compute.autocast():
            losses.append(F.cross_entropy(part(some), labels, label_smoothing=0.1))
    (sum(losses) / 2).backward()  # type: ignore[attr-defined]
    assert training.runner.step.loss_sum.item() == pytest.approx(BATCH * sum(losses).item() / 2)  # type: ignore[attr-defined]
    for ours, theirs in zip(training.network.trainable_part.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with compute.autocast():
        clean.network.trainable_part(twins)
    norms = [some.network.module.layer4[1].bn2 for some in (training, clean)]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert torch.equal(norms[0].running_var, norms[1].running_var)
    assert norms[0].momentum == 0.1


def test_statistics_for_averages_are_of_unperturbed_images_if_those_have_their_own() -> None:
    for splits, strength in ((True, 0.0), (False, 1.0)):
        training = start(splits_statistics=splits)
        augmentation = replace(training.recipe.augmentation, strength=strength)
        expected = Batches(training_images(), augmentation, training.frozen_part, 0).of_epoch(1, 250, training.portions)
        measured = features_for_batch_norms(training, training_images(), training.frozen_part)
        assert torch.equal(torch.cat(measured), next(expected)[0])


def test_logits_far_apart_have_a_finite_divergence_and_gradient() -> None:
    logits = torch.tensor([[500.0, -500.0]], requires_grad=True)
    divergence = jensen_shannon(logits, -logits)
    divergence.backward()
    assert divergence.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert jensen_shannon(logits, logits).item() == 0


def test_batches_are_prepared_fewer_at_once_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    images, training = training_images(), start()
    batches = Batches(images, training.recipe.augmentation, training.frozen_part, seed=0)
    expected = [features.clone() for features, _ in batches.of_epoch(1, BATCH, training.portions)]
    prepare = Batches._features

    def short(self: Batches, chosen: Tensor, epoch: int) -> list[Tensor]:
        if len(chosen) > 8:
            raise MemoryError
        return prepare(self, chosen, epoch)

    monkeypatch.setattr(Batches, "_features", short)
    training.portions.prepared = 64
    for features, (others, _) in zip(expected, batches.of_epoch(1, BATCH, training.portions), strict=True):
        assert torch.equal(features, others)
    assert training.portions.prepared == 8
    monkeypatch.setattr(Batches, "_features", lambda *given: short(batches, torch.arange(9), 1))
    with pytest.raises(MemoryError, match="not even 8 images"):
        next(batches.of_epoch(1, BATCH, training.portions))


def test_batch_norms_are_measured_as_pytorch_does_it() -> None:
    ours, theirs = (build_network("resnet18", 5, {}, 32, 0, seed=0) for _ in range(2))
    batches = [torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in (4, 6, 5)]
    measure_batch_norms(ours, batches, FP32)
    torch.optim.swa_utils.update_bn(batches, theirs)
    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())
    assert {module.momentum for module in ours.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_refilled_copy_is_what_a_new_one_would_be(compute: Compute) -> None:
    network = build_network("resnet18", 5, {}, 32, 0, seed=0)
    images = tuning_images()
    copy = Inference(network, compute)
    before = copy(images.conditions["clean"])
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.1).add_(0.01)
    assert torch.equal(copy(images.conditions["clean"]), before), "not before it is told"
    copy.refill()
    assert torch.equal(copy(images.conditions["clean"]), Inference(network, compute)(images.conditions["clean"]))
    assert evaluate(copy, images) == evaluate(Inference(network, compute), images)


def test_a_compiled_step_trains_alike() -> None:
    """Only its arithmetic is another's, in the last digits. (A real compiler takes half a minute; this one traces.)"""
    training, plain = start(), start()
    training.runner.step.compiled = torch.compile(training.runner.step.part, backend="eager", dynamic=False)
    for some in (training, plain):
        some.runner.step.rate.fill_(0.001)
        some.runner.run(*a_batch())
    torch.testing.assert_close(training.network.module.fc.weight, plain.network.module.fc.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(training.runner.step.loss_sum, plain.runner.step.loss_sum, rtol=1e-4, atol=0)
