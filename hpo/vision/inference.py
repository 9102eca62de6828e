"""Parts of a network for inference alone, with BatchNorm folded into the convolutions before it.

They serve the frozen part, which is the same in all of a training, and evaluation.
"""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hpo.vision.device import Compute


class Inference:
    """A copy of a part of a network, in eval mode and without gradients: what is learned later does not reach it."""

    def __init__(self, part: nn.Module, compute: Compute) -> None:
        self.compute = compute
        self._part = deepcopy(part).eval().requires_grad_(False)
        for module in list(self._part.modules()):
            _fold_batch_norms(module)
        if compute.bf16:
            for module in self._part.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)
        self._part.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        with self.compute.autocast():
            output: Tensor = self._part(batch)
        return output


def _fold_batch_norms(module: nn.Module) -> None:
    for (name, convolution), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, norm_name, nn.Identity())
