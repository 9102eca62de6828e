"""The blur of a camera that moves."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

RADII = ((0.0, 10.0), (2.5, 10.0), (3.0, 12.0))
"""The benchmark's radius in pixels, by sigma; linear between."""
LARGEST_ANGLE = 45.0
"""Degrees to either side of the horizontal."""


class MotionBlur(LeveledPerturbation):
    """Smears each image in a random direction, at most 45 degrees off the horizontal."""

    sigma: Annotated[float, Field(gt=0, le=12)]
    """Standard deviation of the smear, in pixels."""
    severity = "sigma"
    levels = (1, 1.5, 2, 2.5, 3)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """A mean of shifted images, the further the lighter, with the border's pixels repeated, as in ImageMagick."""
        import torch

        from hpo.vision.filters import interpolated
        from hpo.vision.random_bits import uniform

        count, channels, height, width = pixels.shape
        angle = torch.deg2rad((2 * uniform(keys, 1) - 1) * LARGEST_ANGLE)
        length = 2 * interpolated(severity, RADII).floor() + 1
        steps = torch.arange(2 * int(RADII[-1][1]) + 1, device=pixels.device, dtype=pixels.dtype)
        kernel = (-0.5 * (steps / severity[:, None].clamp(min=1e-3)) ** 2).exp() * (steps < length[:, None])
        kernel = kernel / kernel.sum(1, keepdim=True)
        down = -(steps * angle.sin() - 0.5).ceil().long()
        across = -(steps * angle.cos() - 0.5).ceil().long()
        rows = (torch.arange(height, device=pixels.device) - down[..., None]).clamp_(0, height - 1)
        columns = (torch.arange(width, device=pixels.device) - across[..., None]).clamp_(0, width - 1)
        blurred = torch.zeros_like(pixels)
        for step in range(len(steps)):
            shape = (count, channels, height, width)
            moved = pixels.gather(2, rows[:, step, None, :, None].expand(shape))
            moved = moved.gather(3, columns[:, step, None, None, :].expand(shape))
            blurred += kernel[:, step, None, None, None] * moved
        return blurred.clamp_(0, 1)
