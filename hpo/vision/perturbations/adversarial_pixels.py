"""Few pixels whose colours are chosen by gradient."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor

    from hpo.doors.perturbation import Gradient, State

LAST_REDRAWN = 0.8
"""Fraction of the steps after which the pixels stay and colours alone move."""


class AdversarialPixels(AdaptivePerturbation):
    """Moves the colours of a few pixels up the loss until the image is misclassified."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the pixels whose colours may change."""
    positions: Literal["random", "chosen"] = "random"
    """Which pixels are tried: random ones, or those that the gradient points at."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 45
    """Steps up the loss; each costs one gradient."""
    severity = "fraction"

    def start(
        self, pixels: "Tensor", keys: "Tensor", severity: "Tensor", restart: int, gradient_at: "Gradient"
    ) -> "State":
        """Random colours on random pixels, or the colours and pixels that the gradient at the image points at; in
        restarts by chance more or less.
        """
        import torch

        from hpo.vision.random_bits import derive_keys, uniform

        most = (severity * pixels[0, 0].numel()).round().long().clamp(min=1) * (severity > 0)
        worth = _drawn(keys, 0, pixels)
        colours = uniform(derive_keys(keys, "which colours"), pixels[0].numel()).view_as(pixels)
        if self.positions == "chosen":
            gradient = gradient_at(pixels)
            worth = gradient.abs().sum(1, keepdim=True) * (worth if restart else 1)
            colours = _steepest(gradient)
        chosen = _best(worth, most)
        images = torch.where(chosen, colours, pixels)
        return {"images": images, "chosen": chosen, "pixels": pixels, "keys": keys, "most": most}

    def step(self, state: "State", gradient: "Tensor", number: int) -> "State":
        """A sign step in colour, at first to the edge, then shorter. All but the last steps also replace a third of the
        pixels, those whose change does the least for the loss, to first order: by random ones (as in Croce et al.,
        "Sparse-RS", AAAI 2022, arXiv:2006.12834), or by those whose best colours would do the most.
        """
        import torch

        chosen, pixels, images = state["chosen"], state["pixels"], state["images"]
        colours = (images + (1 - number / self.steps) * gradient.sign()).clamp(0, 1)
        if number < self.steps * LAST_REDRAWN:
            most, best = state["most"], _steepest(gradient)
            does = ((images - pixels) * gradient).sum(1, keepdim=True)
            if self.positions == "chosen":
                worth = ((best - pixels) * gradient).sum(1, keepdim=True)
            else:
                worth = _drawn(state["keys"], number + 1, pixels)
            others = _best(worth.masked_fill(chosen, -torch.inf), most // 3)
            chosen = others | _best(does.masked_fill(~chosen, -torch.inf), most - most // 3)
            colours = torch.where(others, best, colours)
        return state | {"images": torch.where(chosen, colours, pixels), "chosen": chosen}


def _drawn(keys: "Tensor", number: int, pixels: "Tensor") -> "Tensor":
    """Uniform numbers, float32 (n, 1, height, width)."""
    from hpo.vision.random_bits import derive_keys, uniform

    keys = derive_keys(keys, "which pixels", number)
    return uniform(keys, pixels[0, 0].numel()).view(len(pixels), 1, *pixels.shape[2:])


def _steepest(gradient: "Tensor") -> "Tensor":
    """The colours, 0 or 1, that raise the loss the most to first order."""
    return (gradient > 0).to(gradient.dtype)


def _best(worth: "Tensor", most: "Tensor") -> "Tensor":
    """Whether each pixel is among the `most`, int64 (n,), of the largest worth in its image: bool (n, 1, height,
    width).
    """
    import torch

    best = worth.flatten(1).topk(int(most.max())).indices
    counted = torch.arange(best.shape[1], device=most.device) < most[:, None]
    return torch.zeros_like(worth, dtype=torch.bool).flatten(1).scatter_(1, best, counted).view_as(worth)
