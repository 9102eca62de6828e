"""The oldest reference: one step by the gradient's sign."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor

    from hpo.doors.perturbation import Gradient, State


class Fgsm(AdaptivePerturbation):
    """The fast gradient sign method: every value moved by epsilon, in the direction that raises the loss."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 2 / 255
    """The change of a value, on the [0, 1] pixel range."""
    steps: Annotated[int, Field(ge=1, le=1)] = 1
    """One, by definition."""
    severity = "epsilon"

    def start(
        self, pixels: "Tensor", keys: "Tensor", severity: "Tensor", restart: int, gradient_at: "Gradient"
    ) -> "State":
        """The image itself."""
        return {"images": pixels, "epsilon": severity.view(-1, 1, 1, 1)}

    def step(self, state: "State", gradient: "Tensor", number: int) -> "State":
        """Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572."""
        return state | {"images": state["images"] + state["epsilon"] * gradient.sign()}
