"""The blur of a lens that is out of focus."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 8
"""Radius of a disk in pixels, in the benchmark's own grid of 17 x 17."""
EDGES = ((0.0, 0.0), (0.5, 0.6), (1.0, 0.1), (1.5, 0.1), (2.5, 0.01), (3.0, 0.1), (8.0, 0.5))
"""The benchmark's standard deviation of the disk's edge, by radius; linear between."""


class DefocusBlur(LeveledPerturbation):
    """Blurs with a disk, as a lens does that is out of focus."""

    radius: Annotated[float, Field(gt=0, le=LARGEST / 2)]
    """Of the disk, in pixels."""
    severity = "radius"
    levels = (0.5, 1, 1.5, 2.5, 3)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """A disk whose edge is smoothed over 3 x 3 pixels; images are reflected at their borders."""
        import torch

        from hpo.vision.filters import filtered, interpolated, reflected, repeated

        device, radius = pixels.device, severity.view(-1, 1, 1).clamp(max=LARGEST)
        border = min(LARGEST, int(radius.max()) + 1)  # waits for a GPU, which is sooner than the largest disk
        offsets = torch.arange(-border, border + 1, device=device)
        disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(pixels.dtype)
        disk = disk / disk.sum((1, 2), keepdim=True)
        edge = interpolated(severity, EDGES).clamp(min=1e-3).view(-1, 1, 1)
        near = torch.arange(-1, 2, device=device)
        smooth = (-(near[:, None] ** 2 + near**2) / (2 * edge**2)).exp()
        smooth = smooth / smooth.sum((1, 2), keepdim=True)
        every = repeated(len(offsets), 1, device)
        kernels = filtered(disk[:, None], smooth, every, every)[:, 0]
        rows, columns = (reflected(size, border, device) for size in pixels.shape[2:])
        return filtered(pixels, kernels, rows, columns).clamp_(0, 1)
