"""The oldest reference: one step by the gradient's sign."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor


class Fgsm(AdaptivePerturbation):
    """The fast gradient sign method: every value moved by epsilon, in the direction that raises the loss."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 2 / 255
    """The change of a value, on the [0, 1] pixel range."""
    severity = "epsilon"

    def climb(
        self,
        pixels: "Tensor",
        keys: "Tensor",
        severity: "Tensor",
        restart: int,
        gradient_at: "Callable[[Tensor], Tensor]",
    ) -> "Generator[Tensor, Tensor]":
        """Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572."""
        yield pixels + severity.view(-1, 1, 1, 1) * gradient_at(pixels).sign()
