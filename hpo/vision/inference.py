"""Copies of parts of a network for inference only, with BatchNorm folded into the preceding convolutions.

Used for the frozen part, which is constant throughout a training, and for evaluation.
"""

from copy import deepcopy
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hpo.vision.device import Compute
from hpo.vision.winograd import WinogradConv2d, replace_convolutions


class Inference:
    """A copy of a part of a network, in eval mode and without gradients.

    Later changes of the original are taken over by `refill` only.
    """

    def __init__(self, part: nn.Module, compute: Compute) -> None:
        self.compute = compute
        self.part = deepcopy(part).eval().requires_grad_(False)
        if compute.gains_from_winograd:
            replace_convolutions(self.part)
        self._folded: list[tuple[nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]] = []
        for ours, theirs in list(zip(self.part.modules(), part.modules(), strict=True)):
            self._fold_batch_norms(ours, theirs)
        if compute.bf16:
            for module in self.part.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)
        self.part.to(memory_format=torch.channels_last)
        folded = {id(tensor) for convolution, _, _ in self._folded for tensor in convolution.parameters()}
        learned = _tensors(part)
        self._copied = [
            (tensor, learned[name]) for name, tensor in _tensors(self.part).items() if id(tensor) not in folded
        ]
        self.refill()

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        with self.compute.autocast():
            output: Tensor = self.part(batch)
        return output

    @torch.no_grad()
    def refill(self) -> None:
        """Copies the current weights and statistics of the original, without allocating memory."""
        for ours, convolution, norm in self._folded:
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                cast(Tensor, norm.running_mean),
                cast(Tensor, norm.running_var),
                norm.eps,
                norm.weight,
                norm.bias,
            )
            ours.weight.copy_(weight)
            cast(Tensor, ours.bias).copy_(bias)
        for copied, tensor in self._copied:
            copied.copy_(tensor)

    def _fold_batch_norms(self, ours: nn.Module, theirs: nn.Module) -> None:
        """Folds each BatchNorm into the convolution before it, in modules known to run their children in order. Classes
        below these compute something else: timm has such a BatchNorm with an activation.
        """
        if type(theirs).forward is not nn.Sequential.forward and not getattr(theirs, "runs_in_order", False):
            return
        for (name, convolution), (norm_name, norm) in pairwise(list(theirs.named_children())):
            is_plain = type(convolution) in (nn.Conv2d, WinogradConv2d) and type(norm) is nn.BatchNorm2d
            if is_plain and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                folded = cast(nn.Conv2d, ours.get_submodule(name))
                if folded.bias is None:
                    folded.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
                setattr(ours, norm_name, nn.Identity())
                self._folded.append((folded, convolution, norm))


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    return dict(part.named_parameters()) | dict(part.named_buffers())
