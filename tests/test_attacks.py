"""Attacks: what perturbations that are chosen by gradient may change, and that they find what is hard."""

import signal
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hpo.doors.perturbation import PERTURBATIONS, AdaptivePerturbation
from hpo.errors import InputError
from hpo.study_file.images import DataSpec
from hpo.vision.attacks import Attacked, Targets, attack, attacked
from hpo.vision.classifier import Classifier, build_network
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.device import Compute

ADAPTIVE = [name for name, kind in PERTURBATIONS.loadable().items() if issubclass(kind, AdaptivePerturbation)]
SIZE, CLASSES = 16, 5
CPU = Compute(torch.device("cpu"), bf16=False)


def adaptive(name: str, **settings: Any) -> AdaptivePerturbation:
    made = PERTURBATIONS.find(name).model_validate({"name": name, "weight": 1.0, **settings})
    assert isinstance(made, AdaptivePerturbation)
    return made


@pytest.fixture(scope="module")
def victim() -> Attacked:
    """A small network with random weights, which gradients pass through as through any other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.vision.resnet_layers.WIDTHS", (8, 16, 32, 64))
        return Attacked(build_network("resnet18", CLASSES, {}, SIZE, 3, seed=0))


def targets(count: int, severity: float, seed: int = 0) -> Targets:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=draw).float() / 255
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    return Targets(pixels, labels, torch.arange(count) + seed, torch.full((count,), severity))


def changes(made: torch.Tensor, of: Targets) -> torch.Tensor:
    return made - of.pixels


@given(st.sampled_from(ADAPTIVE), st.floats(0.01, 0.2), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_an_image_stays_one_and_keeps_to_the_severity(
    victim: Attacked, name: str, severity: float, count: int, restarts: int, seed: int
) -> None:
    of = targets(count, severity, seed)
    before = of.pixels.clone()
    made = attack(adaptive(name, restarts=restarts), victim, of)
    assert torch.equal(of.pixels, before)
    assert torch.equal((made * 255).round() / 255, made), "what is scored is what 8 bits hold"
    assert made.min() >= 0
    assert made.max() <= 1
    change = changes(made, of)
    largest, rounding = change.abs().amax((1, 2, 3)), 0.5 / 255 + 1e-6
    match name:
        case "fgsm" | "pgd":
            assert largest.max() <= severity + rounding
        case "adversarial-noise":
            assert change.square().mean((1, 2, 3)).sqrt().max() <= severity + rounding
        case "adversarial-pixels":
            touched = (change != 0).any(1).flatten(1).sum(1)
            assert touched.max() <= max(1, round(severity * SIZE * SIZE))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_severity_0_is_the_identity(victim: Attacked, name: str) -> None:
    of = targets(4, 0.0)
    assert torch.equal(attack(adaptive(name), victim, of), of.pixels)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_loss_rises_and_wrong_images_stay_wrong(victim: Attacked, name: str) -> None:
    of = targets(32, 0.1)
    made = attack(adaptive(name), victim, of)
    before, _ = victim.logits_and_gradient(of.pixels, of.labels)
    after, _ = victim.logits_and_gradient(made, of.labels)
    assert F.cross_entropy(after, of.labels) > F.cross_entropy(before, of.labels)
    right = [(logits.argmax(1) == of.labels).sum().item() for logits in (before, after)]
    assert right[1] < right[0]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_image_is_attacked_alike_in_another_batch(victim: Attacked, name: str) -> None:
    """As far as rounding allows: the sign of a gradient that is nearly 0 depends on the batch."""
    of = targets(12, 0.1)
    together = attack(adaptive(name), victim, of)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([attack(adaptive(name), victim, of.at(rows)) for rows in order.split(5)])
    assert (apart == together[order]).float().mean() > 0.9
    assert torch.equal(attack(adaptive(name), victim, of), together)


@pytest.mark.parametrize("positions", ["random", "chosen"])
def test_restarts_only_make_it_harder(victim: Attacked, positions: str) -> None:
    of = targets(24, 0.02)
    losses = []
    for restarts in (1, 4):
        made = attack(adaptive("adversarial-pixels", positions=positions, restarts=restarts, steps=5), victim, of)
        logits, _ = victim.logits_and_gradient(made, of.labels)
        losses.append((F.cross_entropy(logits, of.labels, reduction="none"), logits.argmax(1) != of.labels))
    (once, fooled), (often, fooled_too) = losses
    assert (fooled <= fooled_too).all(), "who was fooled stays fooled"
    assert (often >= once - 1e-5)[~fooled_too].all()
    assert fooled_too.sum() >= fooled.sum()


def test_an_own_perturbation_that_climbs_wrongly_is_one_line(victim: Attacked) -> None:
    class Odd(AdaptivePerturbation):
        sigma: float = 0.1
        severity = "sigma"

        def start(self, pixels: Any, *rest: Any) -> Any:
            return {"images": pixels * torch.nan}

        def step(self, state: Any, *rest: Any) -> Any:
            return state

    with pytest.raises(
        InputError, match=r"perturbation 'odd' made pixels from nan to nan; its start or step must keep"
    ):
        attack(Odd(name="odd", weight=1.0), victim, targets(2, 0.1))


@pytest.fixture(scope="module")
def digits(data_root: object) -> ImageSet:
    return load_images(DataSpec(name="digits", root=str(data_root)), SIZE, seed=0)


@pytest.fixture(scope="module")
def network() -> Classifier:
    return build_network("resnet18", 10, {}, SIZE, 0, seed=0)


def test_batches_in_threads_make_the_same_images(network: Classifier, digits: ImageSet) -> None:
    pgd, some = adaptive("pgd", steps=2), digits.train.evenly_spread(150)
    one, two = (attacked(pgd, network, some, CPU, 0, print, at_once) for at_once in (1, 2))
    assert len(one) == 150
    assert torch.equal(one, two)


def test_a_worker_that_is_asked_to_stop_waits_for_no_attack(network: Classifier, digits: ImageSet) -> None:
    """These steps take an hour: they change nothing."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    asked = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            attacked(adaptive("pgd", epsilon=1e-9, steps=1000, restarts=100), network, digits.train, CPU, 0, print, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert time.monotonic() - asked < 8
