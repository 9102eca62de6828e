"""Colours that are too weak or too strong."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

ADDED = ((1.0, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2))
"""What the benchmark adds to the saturation, by factor; linear between."""


class Saturate(LeveledPerturbation):
    """Multiplies the saturation of the colours; strong factors also colour what is grey."""

    factor: Annotated[float, Field(ge=0, le=100)]
    """Below 1 for paler colours, above for stronger ones."""
    severity = "factor"
    levels = (0.3, 0.1, 2, 5, 30)

    @property
    def scored_severity(self) -> float:
        """What a factor below 1 lacks; 1 more than what one above 1 exceeds it by."""
        return 1 - self.factor if self.factor < 1 else self.factor

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Severities up to 1 weaken the colours, to grey at 1; larger ones are the factor itself."""
        import torch

        from hpo.vision.colours import from_hsv, to_hsv
        from hpo.vision.filters import interpolated

        factor = torch.where(severity > 1, severity, 1 - severity)
        hue, saturation, value = to_hsv(pixels)
        added = interpolated(factor, ADDED).view(-1, 1, 1)
        coloured = from_hsv(hue, (saturation * factor.view(-1, 1, 1) + added).clamp(0, 1), value).clamp_(0, 1)
        return coloured.where(severity.view(-1, 1, 1, 1) > 0, pixels)
