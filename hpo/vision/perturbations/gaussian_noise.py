"""Independent normal noise on every value of every pixel."""

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class GaussianNoise(LeveledPerturbation):
    """Independent normal noise on every value of every pixel."""

    sigma: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation on the [0, 1] pixel range."""
    severity = "sigma"
    levels = (0.04, 0.08, 0.12, 0.15, 0.18)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Adds the noise and clips to [0, 1]."""
        from hpo.vision.random_bits import normal

        noise = normal(keys, math.prod(pixels.shape[1:])).view_as(pixels)
        return (pixels + noise * severity.view(-1, 1, 1, 1)).clamp_(0, 1)
