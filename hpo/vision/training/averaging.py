"""The average of a training's weights, which is scored and kept. After any epoch it scores nearly as well as if the
learning rate had decayed to 0, so that early scores predict the final one better.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpo.vision.device import Compute

ETA = 1
"""Exponent of polynomial-decay averaging: 0 gives all past weights equal shares, 1 linearly increasing ones, 8 favours
the last tenth. With a high learning rate, a long average scores far better early and equally well in the end
(benchmarks/LOG.md).
"""
IMAGES_BETWEEN_AVERAGES = 256
"""Averaging more often takes time without changing scores."""
BATCH_NORM_IMAGES = 1000
"""Number of training images for measuring the averaged network's BatchNorm statistics after each epoch."""


class Average:
    """Polynomial-decay averaging (Shamir and Zhang, ICML 2013, arXiv:1212.1824) of `learned` in `averaged`."""

    def __init__(self, averaged: nn.Module, learned: nn.Module) -> None:
        self.count = 0
        self._averaged = [parameter.data for parameter in averaged.parameters()]
        self._learned = [parameter.data for parameter in learned.parameters()]

    def take(self) -> None:
        """Adds the current weights to the average."""
        self.count += 1
        share = (ETA + 1) / (self.count + ETA)
        torch._foreach_lerp_(self._averaged, self._learned, share)


@torch.no_grad()
def measure_batch_norms(part: nn.Module, batches: Iterable[Tensor], compute: Compute) -> None:
    """Measures BatchNorm's statistics for averaged weights, which are not the average of its statistics (Izmailov et
    al., UAI 2018, arXiv:1803.05407), as the mean over `batches`, the part's input. Frozen BatchNorms keep theirs.

    Equals PyTorch's `update_bn`, which waits for the device in every layer to read a batch count.
    """
    part.train()
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.training]
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
