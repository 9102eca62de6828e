"""Single values that are stuck at black or white."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class ImpulseNoise(LeveledPerturbation):
    """Sets each value of each pixel to 0 or 1, independently with the same probability."""

    amount: Annotated[float, Field(gt=0, le=1)]
    """Probability that a value changes; 0 and 1 are equally likely."""
    severity = "amount"
    levels = (0.01, 0.02, 0.05, 0.08, 0.14)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """A value becomes 0 if its uniform draw is below severity / 2, 1 if it is at least 1 - severity / 2."""
        from hpo.vision.random_bits import uniform

        draws = uniform(keys, pixels[0].numel()).view_as(pixels)
        half = severity.view(-1, 1, 1, 1) / 2
        return pixels.masked_fill(draws < half, 0).masked_fill_(draws >= 1 - half, 1)
