"""Optimizers built on PyTorch's functions. PyTorch's optimizer classes import the compiler on first use, which would
delay a worker's start nearly as much as importing PyTorch itself.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""PyTorch's defaults for AdamW."""


class Optimizer:
    """Base of the optimizers. One-dimensional parameters (norms, biases) and those `undecayed` have no weight decay.

    rate: float32 (), the learning rate of the next step, on the device; state: by kind, tensors for each parameter,
    allocated at the start so that their addresses never change.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float, undecayed: Iterable[nn.Parameter] = ()
    ) -> None:
        given, others = list(parameters), {id(parameter) for parameter in undecayed}
        free = [p for p in given if p.ndim <= 1 or id(p) in others]
        decayed = [p for p in given if p.ndim > 1 and id(p) not in others]
        self.groups = [(decayed, weight_decay), (free, 0.0)]
        self.rate = torch.zeros((), device=given[0].device)
        self.state: dict[str, dict[nn.Parameter, Tensor]] = {}

    def forget_gradients(self) -> None:
        for parameters, _ in self.groups:
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters that have gradients, and their state, in place."""
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
    """SGD with Nesterov momentum (Sutskever et al., ICML 2013), which starts at 0."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float, undecayed: Iterable[nn.Parameter] = ()
    ) -> None:
        super().__init__(parameters, weight_decay, undecayed)
        self.state = {"momentum": self._kept(torch.zeros_like)}

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], same: dict[str, Any]
    ) -> None:
        momentum: list[Tensor | None] = [*state["momentum"]]
        sgd(moved, gradients, momentum, momentum=MOMENTUM, dampening=0.0, nesterov=True, **same)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101)."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float, undecayed: Iterable[nn.Parameter] = ()
    ) -> None:
        super().__init__(parameters, weight_decay, undecayed)
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
