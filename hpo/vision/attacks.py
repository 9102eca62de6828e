"""How images that are chosen by gradient are made: the loss is climbed, and of all that was tried the hardest is kept.

An image is judged as it would be saved, rounded to 8 bits. The first version that is misclassified is kept, otherwise
the one with the highest loss: a set that held only successes would be selected by them.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.doors.perturbation import AdaptivePerturbation
from hpo.trial_result import CLEAN
from hpo.vision.classifier import Classifier
from hpo.vision.random_bits import derive_keys
from hpo.vision.scoring import EvaluationSet


class Attacked:
    """A copy of a classifier in eval mode, in fp32, whose frozen units pass gradients on too."""

    def __init__(self, network: Classifier) -> None:
        copied = deepcopy(network)
        self.part = nn.Sequential(copied.frozen_part, copied.trainable_part).eval().requires_grad_(False)

    def logits_and_gradient(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels, float32 (n, 3, height, width) in [0, 1]: logits, and the gradient of each one's cross-entropy."""
        leaves = pixels.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.part(leaves)
            loss = F.cross_entropy(logits, labels, reduction="sum")  # in eval mode an image's is its own
            (gradient,) = torch.autograd.grad(loss, leaves)
        return logits.detach(), gradient


def attack(
    perturbation: AdaptivePerturbation, network: Attacked, pixels: Tensor, labels: Tensor, keys: Tensor
) -> Tensor:
    """n images perturbed against a network: multiples of 1/255, float32 (n, 3, height, width) in [0, 1].

    pixels: the same, not changed; labels: int64 (n,); keys: int64 (n,), from which all random numbers come. Images that
    the network gets wrong are not tried again.
    """
    hardest = pixels.clone()
    highest = torch.full_like(labels, -torch.inf, dtype=torch.float32)
    fooled = torch.zeros_like(labels, dtype=torch.bool)
    for restart in range(perturbation.restarts):
        left = (~fooled).nonzero()[:, 0]
        if not len(left):
            break
        right = labels[left]

        def gradient_at(some: Tensor, right: Tensor = right) -> Tensor:
            return network.logits_and_gradient(some, right)[1]

        climbing = perturbation.climb(pixels[left], derive_keys(keys[left], "restart", restart), restart, gradient_at)
        candidate = next(climbing, None)
        while candidate is not None and not fooled[left].all():
            tried = (candidate.clamp(0, 1) * 255).round() / 255
            logits, gradient = network.logits_and_gradient(tried, right)
            loss = F.cross_entropy(logits, right, reduction="none")
            wrong = logits.argmax(1) != right
            harder = ~fooled[left] & (wrong | (loss > highest[left]))
            hardest[left[harder]] = tried[harder]
            highest[left[harder]] = loss[harder]
            fooled[left] |= wrong
            try:
                candidate = climbing.send(gradient)
            except StopIteration:
                break
    return hardest


def attacked(
    perturbation: AdaptivePerturbation, network: Classifier, images: EvaluationSet, keys: Tensor, replicate: int
) -> Tensor:
    """Clean images, perturbed against a network: uint8 (n, 3, height, width). keys: int64 (n,), the images' own."""
    victim = Attacked(network)
    keys = derive_keys(keys, perturbation.name, "replicate", replicate)
    batches = zip(
        images.conditions[CLEAN].split(images.at_once),
        images.labels.split(images.at_once),
        keys.split(images.at_once),
        strict=True,
    )
    found = [
        attack(perturbation, victim, pixels.float().div(255), labels, some_keys).mul_(255).round_().to(torch.uint8)
        for pixels, labels, some_keys in batches
    ]
    return torch.cat(found).contiguous(memory_format=torch.channels_last)
