"""The reference: every value moved by gradient, by at most epsilon."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor

    from hpo.doors.perturbation import Gradient, State


class Pgd(AdaptivePerturbation):
    """Projected gradient descent: many steps up the loss, no value changed by more than epsilon."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 2 / 255
    """The largest change of a value, on the [0, 1] pixel range."""
    severity = "epsilon"

    def start(
        self, pixels: "Tensor", keys: "Tensor", severity: "Tensor", restart: int, gradient_at: "Gradient"
    ) -> "State":
        """A uniformly random point within epsilon."""
        from hpo.vision.random_bits import uniform

        epsilon = severity.view(-1, 1, 1, 1)
        low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
        draws = uniform(keys, pixels[0].numel()).view_as(pixels)
        return {"images": low + (high - low) * draws, "low": low, "high": high, "epsilon": epsilon}

    def step(self, state: "State", gradient: "Tensor", number: int) -> "State":
        """A sign step of 2.5 epsilon / steps, as in Madry et al., "Towards Deep Learning Models Resistant to
        Adversarial Attacks", ICLR 2018, arXiv:1706.06083.
        """
        moved = state["images"] + gradient.sign() * (2.5 / self.steps * state["epsilon"])
        return state | {"images": moved.clamp(state["low"], state["high"])}
