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


class AdversarialPixels(AdaptivePerturbation):
    """Moves the colours of a few pixels up the loss until the image is misclassified."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the pixels whose colours may change."""
    positions: Literal["random", "chosen"] = "random"
    """Which pixels: a random subset, or those that the gradient points at."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    restarts: Annotated[int, Field(ge=1, le=100)] = 3
    """From how many subsets images start that the network still gets right; the hardest of all results counts."""
    severity = "fraction"

    def climb(
        self, pixels: "Tensor", keys: "Tensor", restart: int, gradient_at: "Callable[[Tensor], Tensor]"
    ) -> "Generator[Tensor, Tensor]":
        """Sign steps on the colours of a subset. `chosen` starts with the pixels of the largest gradient and every few
        steps draws a third anew: those whose change does the least, by its gradient, for the best of the others.
        """
        import torch

        from hpo.vision.random_bits import derive_keys, random_bits, uniform

        count, channels, height, width = pixels.shape
        most = max(1, round(self.fraction * height * width))
        worth = random_bits(derive_keys(keys, "which pixels"), height * width)
        if self.positions == "chosen":
            largest = gradient_at(pixels).abs().sum(1).flatten(1)
            worth = largest * uniform(derive_keys(keys, "which pixels"), height * width) if restart else largest
        chosen = _best(worth, most).view(count, 1, height, width)
        colours = uniform(derive_keys(keys, "which colours"), channels * height * width).view_as(pixels)
        for step in range(self.steps):
            moved = torch.where(chosen, colours, pixels)
            gradient = yield moved
            if self.positions == "chosen" and step % REDRAWN_EVERY == REDRAWN_EVERY - 1 and step < self.steps * 0.8:
                chosen = _redrawn(chosen, pixels, moved, gradient, most)
            colours = (moved + STEP * (1 - step / self.steps) * gradient.sign()).clamp(0, 1)
        yield torch.where(chosen, colours, pixels)


def _best(worth: "Tensor", most: int) -> "Tensor":
    """Whether each is among the `most` largest of its row, bool (n, m)."""
    import torch

    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, worth.topk(most, dim=1).indices, True)


def _redrawn(chosen: "Tensor", pixels: "Tensor", moved: "Tensor", gradient: "Tensor", most: int) -> "Tensor":
    """By what a pixel does for the loss, to first order: a chosen one what its change does, another one what its best
    colour would.
    """
    import torch

    does = ((moved - pixels) * gradient).sum(1, keepdim=True)
    could_do = (torch.where(gradient > 0, 1 - pixels, pixels) * gradient.abs()).sum(1, keepdim=True)
    new = most // 3
    kept = _best(does.masked_fill(~chosen, -torch.inf).flatten(1), most - new)
    others = _best(could_do.masked_fill(chosen, -torch.inf).flatten(1), new) if new else torch.zeros_like(kept)
    return (kept | others).view_as(chosen)
