"""A random subset of the pixels gets random colours."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import Perturbation

if TYPE_CHECKING:
    from torch import Tensor


class PixelRecolor(Perturbation):
    """A random subset of the pixels gets random colours."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the pixels."""
    severity = "fraction"

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Uniformly random colours for a share of the pixels, rounded to whole ones."""
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
