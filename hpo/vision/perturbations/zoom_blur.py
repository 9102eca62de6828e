"""The blur of a camera that comes nearer."""

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

STEP = 0.01
MOST_STEPS = 100


class ZoomBlur(LeveledPerturbation):
    """The mean of an image and of zooms into it, in steps of 1 %."""

    zoom: Annotated[float, Field(gt=1, le=1.5)]
    """The largest zoom."""
    severity = "zoom"
    levels = (1.05, 1.1, 1.15, 1.2, 1.25)

    @property
    def scored_severity(self) -> float:
        """What the largest zoom exceeds 1 by."""
        return self.zoom - 1

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Each zoom is bilinear, of the image's middle."""
        import torch
        from torch.nn import functional as F

        steps = (severity / STEP).round().clamp(max=MOST_STEPS)
        height, width = pixels.shape[2:]
        total = 2 * pixels  # the image itself, and the zoom of 1
        for step in range(1, int(steps.max()) + 1):  # waits for a GPU, which is sooner than a hundred zooms
            zoom = 1 + step * STEP
            parts = [math.ceil(size / zoom) for size in (height, width)]
            tops = [(size - part) // 2 for size, part in zip((height, width), parts, strict=True)]
            middle = pixels[:, :, tops[0] : tops[0] + parts[0], tops[1] : tops[1] + parts[1]]
            target = [max(size, round(part * zoom)) for size, part in zip((height, width), parts, strict=True)]
            zoomed = F.interpolate(middle, size=target, mode="bilinear", align_corners=True)
            top, left = (target[0] - height) // 2, (target[1] - width) // 2
            part = zoomed[:, :, top : top + height, left : left + width]
            total += torch.where(steps.view(-1, 1, 1, 1) >= step, part, 0)
        mean = (total / (steps + 2).view(-1, 1, 1, 1)).clamp_(0, 1)
        return torch.where(steps.view(-1, 1, 1, 1) > 0, mean, pixels)
