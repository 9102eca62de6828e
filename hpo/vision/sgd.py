"""Stochastic gradient descent by PyTorch's own function. Its optimizer classes import the compiler when they are first
used, only to keep it out of them, and a worker would wait for that nearly as long as for PyTorch itself.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.sgd import sgd

MOMENTUM = 0.9


class Sgd:
    """With Nesterov momentum (Sutskever et al. 2013); BatchNorm and biases, all that is one-dimensional, have no weight
    decay.

    rate: float32 (), the learning rate of the next step, on the device. momentum: of each parameter; it is there from
    the beginning, so that it stays where it is in memory: of 0 the first step makes what it would make of none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        given = list(parameters)
        decayed, free = [p for p in given if p.ndim > 1], [p for p in given if p.ndim <= 1]
        self.groups = [(decayed, weight_decay), (free, 0.0)]
        self.momentum = {parameter: torch.zeros_like(parameter) for parameter in (*decayed, *free)}
        self.rate = torch.zeros((), device=given[0].device)

    def forget_gradients(self) -> None:
        for parameter in self.momentum:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Changes the parameters that have gradients, and their momentum, in place."""
        for parameters, weight_decay in self.groups:
            moved = [parameter for parameter in parameters if parameter.grad is not None]
            sgd(
                [*moved],
                [parameter.grad for parameter in moved if parameter.grad is not None],
                [self.momentum[parameter] for parameter in moved],
                fused=True,
                weight_decay=weight_decay,
                momentum=MOMENTUM,
                lr=self.rate,
                dampening=0.0,
                nesterov=True,
                maximize=False,
            )
