"""The average of a training's weights, which is scored and kept: between two epochs it scores nearly as if the learning
rate had fallen to 0 there, so that early epochs tell more of the last.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hpo.vision.device import Compute

ETA = 1
"""Of polynomial-decay averaging: 0 weighs all weights so far alike; 1 by how late they came; 8 the last tenth most.
With a high learning rate a long average scores far better in early epochs, and as well in the end (benchmarks/LOG.md).
"""
IMAGES_BETWEEN_AVERAGES = 256
"""Averaging more often costs time and changes nothing."""
BATCH_NORM_IMAGES = 1000
"""Of so many training images the averaged network's BatchNorm statistics are measured after each epoch."""


class Average:
    """Polynomial-decay averaging (Shamir and Zhang, ICML 2013, arXiv:1212.1824) of one part's weights in another's."""

    def __init__(self, averaged: nn.Module, learned: nn.Module) -> None:
        self.count = 0
        self._averaged = [parameter.data for parameter in averaged.parameters()]
        self._learned = [parameter.data for parameter in learned.parameters()]

    def take(self) -> None:
        """Takes in the weights as they are now."""
        self.count += 1
        share = (ETA + 1) / (self.count + ETA)
        torch._foreach_lerp_(self._averaged, self._learned, share)


@torch.no_grad()
def measure_batch_norms(part: nn.Module, batches: Iterable[Tensor], compute: Compute) -> None:
    """BatchNorm's statistics for averaged weights are not the averages of its statistics, but must be measured
    (Izmailov et al., UAI 2018, arXiv:1803.05407): the mean of those of the batches, which are what the part takes.

    As PyTorch's `update_bn`, which however reads from the device how many batches it has seen, in each layer.
    """
    part.train()
    norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    usual = [norm.momentum for norm in norms]
    for count, batch in enumerate(batches, 1):
        for norm in norms:
            if count == 1:
                norm.reset_running_stats()
            norm.momentum = 1 / count
        with compute.autocast():
            part(batch)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    part.eval()
