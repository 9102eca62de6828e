"""Images of few large pixels."""

from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Pixelate(LeveledPerturbation):
    """Scales images down and up again, to fewer and larger pixels."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Of the height and width that is left in between."""
    severity = "share"
    levels = (0.9, 0.8, 0.7, 0.6, 0.5)

    @property
    def scored_severity(self) -> float:
        """The share of height and width that is lost."""
        return 1 - self.share

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Means of boxes, as Pillow's BOX filter takes them; at least one pixel is left."""
        height, width = pixels.shape[2:]
        rows, columns = (
            _boxes(size, pixels.device)[((1 - severity + 1e-6) * size).long().clamp(1, size)]
            for size in (height, width)
        )
        rows, columns = rows[:, None], columns[:, None].mT
        coarse = (rows @ pixels.double() @ columns / (rows.sum(3, keepdim=True) * columns.sum(2, keepdim=True))).float()
        return coarse.clamp_(0, 1).where(severity.view(-1, 1, 1, 1) > 0, pixels)


@cache
def _boxes(size: int, device: "torch.device") -> "Tensor":
    """By the number of pixels in between, 0 to `size`, and for each of `size` pixels: 1 for those in its box, else 0,
    float64 (size + 1, size, size). Sums of pixels are exact in float64, so that an image's last bits do not depend on
    how many are scaled with it.
    """
    import torch

    found = torch.zeros(size + 1, size, size, dtype=torch.float64)
    for few in range(1, size + 1):
        scale = size / few
        large = torch.arange(few)[:, None] * scale
        small = torch.arange(size) + 0.5
        inside = ((small > large) & (small <= large + scale)).double()
        found[few] = inside[((torch.arange(size) + 0.5) / scale).long()]
    return found.to(device)
