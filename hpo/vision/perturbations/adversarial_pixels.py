"""Few pixels whose colours are chosen by gradient."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor

STEP = 0.25
"""Of a colour, at first; it falls to 0."""
REDRAWN_EVERY = 5
"""Steps between two redrawings of a third of the pixels."""
LAST_REDRAWN = 0.8
"""Fraction of the steps after which colours alone move."""


class AdversarialPixels(AdaptivePerturbation):
    """Moves the colours of a few pixels up the loss until the image is misclassified."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the pixels whose colours may change."""
    positions: Literal["random", "chosen"] = "random"
    """Which pixels are tried: random ones, or those that the gradient points at."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Steps of a climb; each costs one gradient."""
    restarts: Annotated[int, Field(ge=1, le=100)] = 3
    """How often images start from other pixels that the network still gets right; the hardest of all results counts."""
    severity = "fraction"

    def climb(
        self,
        pixels: "Tensor",
        keys: "Tensor",
        severity: "Tensor",
        restart: int,
        gradient_at: "Callable[[Tensor], Tensor]",
    ) -> "Generator[Tensor, Tensor]":
        """Sign steps on the colours of a subset of the pixels. Every few steps a third of it, that whose change does
        the least for the loss to first order, gives way to others: random ones (as in Croce et al., "Sparse-RS", AAAI
        2022, arXiv:2006.12834), or those whose best colours would do the most.
        """
        import torch

        from hpo.vision.random_bits import derive_keys, uniform

        count, channels, height, width = pixels.shape
        most = (severity * (height * width)).round().long().clamp(min=1) * (severity > 0)

        def drawn(step: int) -> "Tensor":
            return uniform(derive_keys(keys, "which pixels", step), height * width).view(count, 1, height, width)

        worth = drawn(0)
        colours = uniform(derive_keys(keys, "which colours"), channels * height * width).view_as(pixels)
        if self.positions == "chosen":
            gradient = gradient_at(pixels)
            worth = gradient.abs().sum(1, keepdim=True) * (worth if restart else 1)
            colours = _steepest(gradient)
        chosen = _best(worth, most)
        for step in range(self.steps):
            moved = torch.where(chosen, colours, pixels)
            gradient = yield moved
            far = STEP * (1 - step / self.steps)
            colours = torch.where(chosen, moved + far * gradient.sign(), colours).clamp(0, 1)
            if (step + 1) % REDRAWN_EVERY == 0 and step < self.steps * LAST_REDRAWN:
                does = ((moved - pixels) * gradient).sum(1, keepdim=True)
                could_do = ((_steepest(gradient) - pixels) * gradient).sum(1, keepdim=True)
                worth = could_do if self.positions == "chosen" else drawn(step + 1)
                others = _best(worth.masked_fill(chosen, -torch.inf), most // 3)
                chosen = others | _best(does.masked_fill(~chosen, -torch.inf), most - most // 3)
                colours = torch.where(others, _steepest(gradient), colours)
        yield torch.where(chosen, colours, pixels)


def _steepest(gradient: "Tensor") -> "Tensor":
    """The colours, 0 or 1, that raise the loss the most to first order."""
    return (gradient > 0).to(gradient.dtype)


def _best(worth: "Tensor", most: "Tensor") -> "Tensor":
    """Whether each pixel is among the `most`, int64 (n,), of the largest worth in its image: bool (n, 1, height,
    width).
    """
    ranks = worth.flatten(1).argsort(descending=True, stable=True).argsort()
    return (ranks < most[:, None]).view_as(worth)
