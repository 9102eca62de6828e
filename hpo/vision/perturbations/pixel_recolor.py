"""Random colours on a random subset of the pixels."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import Perturbation

if TYPE_CHECKING:
    from torch import Tensor


class PixelRecolor(Perturbation):
    """Random colours on a random subset of the pixels."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the pixels."""
    severity = "fraction"

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Gives uniformly random colours to a fraction of the pixels, rounded to a whole number of pixels."""
        import torch

        from hpo.vision.random_bits import derive_keys, random_bits, uniform

        count, channels, height, width = pixels.shape
        order = random_bits(derive_keys(keys, "which pixels"), height * width)
        touched = (severity * (height * width)).round().long().clamp_(0, height * width)
        sorted_order = torch.sort(order, dim=1).values
        last = sorted_order.gather(1, (touched - 1).clamp_(min=0)[:, None])
        chosen = ((order <= last) & (touched > 0)[:, None]).view(count, 1, height, width)
        colours = uniform(derive_keys(keys, "which colours"), channels * height * width).view_as(pixels)
        return torch.where(chosen, colours, pixels)
