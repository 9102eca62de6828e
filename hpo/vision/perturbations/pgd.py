"""The reference: every value moved by gradient, by at most epsilon."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor


class Pgd(AdaptivePerturbation):
    """Projected gradient descent: many steps up the loss, no value changed by more than epsilon."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 2 / 255
    """The largest change of a value, on the [0, 1] pixel range."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Steps of a climb; each costs one gradient."""
    severity = "epsilon"

    def climb(
        self,
        pixels: "Tensor",
        keys: "Tensor",
        severity: "Tensor",
        restart: int,
        gradient_at: "Callable[[Tensor], Tensor]",
    ) -> "Generator[Tensor, Tensor]":
        """Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083:
        from a uniformly random start, sign steps of 2.5 epsilon / steps.
        """
        from hpo.vision.random_bits import uniform

        epsilon = severity.view(-1, 1, 1, 1)
        low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
        moved = low + (high - low) * uniform(keys, pixels[0].numel()).view_as(pixels)
        for _ in range(self.steps):
            gradient = yield moved
            moved = (moved + gradient.sign() * (2.5 / self.steps * epsilon)).clamp(low, high)
        yield moved
