"""Optimizers by PyTorch's own functions. Its optimizer classes import the compiler when they are first used, only to
keep it out of them, and a worker would wait for that nearly as long as for PyTorch itself.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as PyTorch has them."""


class Optimizer:
    """BatchNorm and biases, all that is one-dimensional, have no weight decay.

    rate: float32 (), the learning rate of the next step, on the device. state: by kind, what is kept of each parameter;
    it is there from the beginning, so that it stays where it is in memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        given = list(parameters)
        decayed, free = [p for p in given if p.ndim > 1], [p for p in given if p.ndim <= 1]
        self.groups = [(decayed, weight_decay), (free, 0.0)]
        self.rate = torch.zeros((), device=given[0].device)
        self.state: dict[str, dict[nn.Parameter, Tensor]] = {}

    def forget_gradients(self) -> None:
        for parameters, _ in self.groups:
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Changes the parameters that have gradients, and their state, in place."""
        for parameters, weight_decay in self.groups:
            moved = [parameter for parameter in parameters if parameter.grad is not None]
            gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
            state = {kind: [kept[parameter] for parameter in moved] for kind, kept in self.state.items()}
            same = {"fused": True, "lr": self.rate, "weight_decay": weight_decay, "maximize": False}
            self._update([*moved], gradients, state, same)

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], same: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def _kept(self, make: Any) -> dict[nn.Parameter, Tensor]:
        return {parameter: make(parameter) for parameters, _ in self.groups for parameter in parameters}


class Sgd(Optimizer):
    """With Nesterov momentum (Sutskever et al. 2013), of which 0 makes the first step what it would be without."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        super().__init__(parameters, weight_decay)
        self.state = {"momentum": self._kept(torch.zeros_like)}

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], same: dict[str, Any]
    ) -> None:
        momentum: list[Tensor | None] = [*state["momentum"]]
        sgd(moved, gradients, momentum, momentum=MOMENTUM, dampening=0.0, nesterov=True, **same)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        super().__init__(parameters, weight_decay)
        self.state = {
            "mean": self._kept(torch.zeros_like),
            "square": self._kept(torch.zeros_like),
            "steps": self._kept(lambda parameter: torch.zeros((), device=parameter.device)),
        }

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], same: dict[str, Any]
    ) -> None:
        mean, square, steps = (state[kind] for kind in ("mean", "square", "steps"))
        adamw(
            moved,
            gradients,
            mean,
            square,
            [],
            steps,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPSILON,
            **same,
        )


OPTIMIZERS = {"sgd": Sgd, "adamw": AdamW}
"""By the values of the parameter `optimizer`."""
