"""Paler images."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class Contrast(LeveledPerturbation):
    """Draws each channel towards its mean over the image."""

    factor: Annotated[float, Field(ge=0, lt=1)]
    """What the distance from the mean is multiplied by."""
    severity = "factor"
    levels = (0.4, 0.3, 0.2, 0.1, 0.05)

    @property
    def scored_severity(self) -> float:
        """The share of the contrast that is lost."""
        return 1 - self.factor

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """A severity above 1 is as 1: nothing but the means is left."""
        mean = pixels.mean((2, 3), keepdim=True)
        return pixels.lerp(mean, severity.view(-1, 1, 1, 1).clamp(max=1)).clamp_(0, 1)
