"""Noise in proportion to brightness."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class SpeckleNoise(LeveledPerturbation):
    """Normal noise in proportion to each value."""

    sigma: Annotated[float, Field(gt=0, le=10)]
    """Standard deviation, as a multiple of the value."""
    severity = "sigma"
    levels = (0.15, 0.2, 0.25, 0.3, 0.35)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Adds the noise and clips to [0, 1]."""
        from hpo.vision.random_bits import normal

        noise = normal(keys, pixels[0].numel()).view_as(pixels)
        return (pixels + pixels * noise * severity.view(-1, 1, 1, 1)).clamp_(0, 1)
