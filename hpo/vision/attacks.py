"""How images that are chosen by gradient are made: the loss is climbed, and of all that was tried the hardest is kept.

An image is judged as it would be saved, rounded to 8 bits. The first version that is misclassified is kept, otherwise
the one with the highest loss: a set that held only successes would be selected by them.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.doors.perturbation import AdaptivePerturbation
from hpo.vision.classifier import Classifier
from hpo.vision.data.images import Split
from hpo.vision.device import Compute, upload
from hpo.vision.memory import Portions, fitting
from hpo.vision.random_bits import derive_keys
from hpo.vision.scoring import check_images, in_8_bits
from hpo.vision.winograd import replace_convolutions

SECONDS_BETWEEN_LINES = 20


class Attacked:
    """A copy of a classifier in eval mode, in fp32, whose frozen units pass gradients on too.

    Later changes of the original are taken over by `refill` only.
    """

    def __init__(self, network: Classifier) -> None:
        self.original = network
        self.copied = deepcopy(network).requires_grad_(False)
        if next(network.parameters()).device.type == "cpu":
            replace_convolutions(self.copied)
        self.part = nn.Sequential(self.copied.frozen_part, self.copied.trainable_part).eval()
        self.is_given_up = False

    def refill(self) -> None:
        """Copies the current weights and statistics of the original."""
        self.copied.load_state_dict(self.original.state_dict())

    def logits_and_gradient(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels, float32 (n, 3, height, width) in [0, 1]: logits, and the gradient of each one's cross-entropy.

        Raises InterruptedError in a thread for whose images nobody waits any more.
        """
        if self.is_given_up:
            raise InterruptedError
        leaves = pixels.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.part(leaves)
            loss = F.cross_entropy(logits, labels, reduction="sum")  # in eval mode an image's is its own
            (gradient,) = torch.autograd.grad(loss, leaves)
        return logits.detach(), gradient


@dataclass(frozen=True)
class Targets:
    """n images to be perturbed. pixels: float32 (n, 3, height, width) in [0, 1], not changed; labels: int64 (n,); keys:
    int64 (n,), from which all random numbers come; severity: float32 (n,).
    """

    pixels: Tensor
    labels: Tensor
    keys: Tensor
    severity: Tensor

    def at(self, rows: Tensor) -> "Targets":
        return Targets(self.pixels[rows], self.labels[rows], self.keys[rows], self.severity[rows])


class _Hardest:
    """The hardest version of each target so far. fooled: bool (n,), whether the network gets it wrong."""

    def __init__(self, targets: Targets) -> None:
        self.pixels = targets.pixels.clone()
        self.labels = targets.labels
        self.loss = torch.full_like(targets.severity, -torch.inf)
        self.fooled = torch.zeros_like(targets.labels, dtype=torch.bool)

    def take(self, rows: Tensor, tried: Tensor, logits: Tensor) -> Tensor:
        """Considers a version of each target at `rows`, int64 (m,), none of which is fooled yet. Returns the positions
        among them of those that still are not, int64.
        """
        labels = self.labels[rows]
        loss = F.cross_entropy(logits, labels, reduction="none")
        wrong = logits.argmax(1) != labels
        harder = wrong | (loss > self.loss[rows])
        self.pixels[rows[harder]] = tried[harder]
        self.loss[rows[harder]] = loss[harder]
        self.fooled[rows] = wrong
        return (~wrong).nonzero()[:, 0]


@torch.no_grad()
def attack(perturbation: AdaptivePerturbation, network: Attacked, targets: Targets) -> Tensor:
    """The targets perturbed against a network: multiples of 1/255, float32 (n, 3, height, width) in [0, 1].

    Images that the network gets wrong are not tried again.
    """
    hardest = _Hardest(targets)
    for restart in range(perturbation.restarts):
        _climb(perturbation, network, targets, restart, hardest)
    return hardest.pixels


def _climb(
    perturbation: AdaptivePerturbation, network: Attacked, targets: Targets, restart: int, hardest: _Hardest
) -> None:
    """From one start, with those that are not fooled yet, until all are or the steps are done."""
    rows = (~hardest.fooled).nonzero()[:, 0]
    if not len(rows):
        return
    some = targets.at(rows)

    def gradient_at(pixels: Tensor) -> Tensor:
        return network.logits_and_gradient(pixels, some.labels)[1]

    keys = derive_keys(some.keys, "restart", restart)
    state = perturbation.start(some.pixels, keys, some.severity, restart, gradient_at)
    for number in range(perturbation.steps):
        tried = _rounded(perturbation.name, state["images"], some.pixels[: len(rows)])
        logits, gradient = network.logits_and_gradient(tried, targets.labels[rows])
        left = hardest.take(rows, tried, logits)
        if not len(left):
            return
        rows, state = rows[left], {name: tensor[left] for name, tensor in state.items()}
        state = perturbation.step(state, gradient[left], number)
    tried = _rounded(perturbation.name, state["images"], some.pixels[: len(rows)])
    hardest.take(rows, tried, network.part(tried))


def _rounded(name: str, made: Tensor, pixels: Tensor) -> Tensor:
    """What 8 bits make of it. Raises InputError if it is no images as `pixels` are."""
    clipped = made.clamp(0, 1) if isinstance(made, Tensor) else made
    check_images(name, "start or step", clipped, pixels)
    return clipped.mul_(255).round_().div_(255)


def attacked(
    perturbation: AdaptivePerturbation,
    network: Classifier,
    images: Split,
    compute: Compute,
    replicate: int | str,
    say: Callable[[str], None],
    at_once: int,
) -> Tensor:
    """Images perturbed against a network, seeded by image key, name and replicate: uint8 (n, height, width, 3), in
    memory. say: is told of progress; at_once: how many batches, each in a thread of its own, which on a CPU waits for
    no other as PyTorch's threads within a batch do. Raises MemoryError if not even SMALLEST_PORTION fit.
    """
    victim = Attacked(network.to(compute.device))
    most = compute.images_attacked_at_once(network.normalise.size)
    portions = Portions(most, most)
    severity = perturbation.scored_severity

    def made(rows: Tensor) -> Tensor:
        chosen = rows.numpy()
        pixels = upload(torch.from_numpy(images.pixels[images.rows[chosen]]), compute.device)
        labels, keys = (upload(torch.from_numpy(of[chosen]), compute.device) for of in (images.labels, images.keys))
        targets = Targets(
            pixels.permute(0, 3, 1, 2).float().div_(255),
            labels,
            derive_keys(keys, perturbation.name, "replicate", replicate),
            torch.full(labels.shape, severity, device=compute.device),
        )
        return in_8_bits(attack(perturbation, victim, targets)).permute(0, 2, 3, 1).cpu()

    def make() -> Tensor:
        parts: list[Tensor] = []
        told = time.monotonic()
        batches = torch.arange(len(images)).split(portions.micro_batch)
        with closing(_in_threads(at_once, made, batches, victim)) as found:
            for part in found:
                parts.append(part)
                if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    say(f"{perturbation.name}: {sum(map(len, parts)):,} of {len(images):,} images are made")
        return torch.cat(parts).contiguous()

    return fitting(make, portions.split_batch)


def _in_threads(
    count: int, function: Callable[[Tensor], Tensor], arguments: Sequence[Tensor], victim: Attacked
) -> Generator[Tensor, None, None]:
    """The results in order. Where nobody waits for them any more, threads that attack the victim end soon."""
    victim.is_given_up = False
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    try:
        yield from pool.map(function, arguments)
    except BaseException:
        victim.is_given_up = True
        raise
    finally:
        pool.shutdown(cancel_futures=True)
