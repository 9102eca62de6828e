"""A random subset of the pixels turns black or white, as where a sensor's cells are dead or stuck."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import Perturbation

if TYPE_CHECKING:
    from torch import Tensor


class SaltAndPepper(Perturbation):
    """Each pixel, independently, turns black or white with a probability."""

    amount: Annotated[float, Field(gt=0, le=1)]
    """The probability, half of it for black, half for white."""
    severity = "amount"

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Black where a draw is below half the severity, white where it is at least 1 less that."""
        from hpo.vision.random_bits import uniform

        draws = uniform(keys, pixels[0, 0].numel()).view(len(pixels), 1, *pixels.shape[2:])
        half = severity.view(-1, 1, 1, 1) / 2
        return pixels.masked_fill(draws < half, 0).masked_fill_(draws >= 1 - half, 1)
