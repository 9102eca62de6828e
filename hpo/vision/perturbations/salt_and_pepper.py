"""A random subset of the pixels turns black or white, as with dead or stuck sensor cells."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import Perturbation

if TYPE_CHECKING:
    from torch import Tensor


class SaltAndPepper(Perturbation):
    """Turns each pixel black or white, independently with the same probability."""

    amount: Annotated[float, Field(gt=0, le=1)]
    """Probability that a pixel changes; black and white are equally likely."""
    severity = "amount"

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """A pixel turns black if its uniform draw is below severity / 2, white if it is at least 1 - severity / 2."""
        from hpo.vision.random_bits import uniform

        draws = uniform(keys, pixels[0, 0].numel()).view(len(pixels), 1, *pixels.shape[2:])
        half = severity.view(-1, 1, 1, 1) / 2
        return pixels.masked_fill(draws < half, 0).masked_fill_(draws >= 1 - half, 1)
