"""Brighter images."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class Brightness(LeveledPerturbation):
    """Makes images brighter, keeping hue and saturation."""

    added: Annotated[float, Field(gt=0, le=1)]
    """Added to the value of hue, saturation and value."""
    severity = "added"
    levels = (0.1, 0.2, 0.3, 0.4, 0.5)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """The value is clipped to [0, 1]."""
        from hpo.vision.colours import from_hsv, to_hsv

        hue, saturation, value = to_hsv(pixels)
        brighter = from_hsv(hue, saturation, (value + severity.view(-1, 1, 1)).clamp(0, 1)).clamp_(0, 1)
        return brighter.where(severity.view(-1, 1, 1, 1) > 0, pixels)
