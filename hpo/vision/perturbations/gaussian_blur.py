"""A blur without edges."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

TRUNCATED_AT = 4.0
"""Standard deviations, as in SciPy."""
LARGEST = 16.0


class GaussianBlur(LeveledPerturbation):
    """Blurs with a Gaussian."""

    sigma: Annotated[float, Field(gt=0, le=LARGEST / 2)]
    """Standard deviation in pixels."""
    severity = "sigma"
    levels = (0.5, 0.75, 1, 1.25, 1.5)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Rows and then columns, with the border's pixels repeated."""
        import torch

        from hpo.vision.filters import filtered, repeated

        sigma = severity[:, None].clamp(1e-3, LARGEST)
        border = int(
            TRUNCATED_AT * float(sigma.max()) + 0.5
        )  # waits for a GPU, which is sooner than the largest kernel
        offsets = torch.arange(-border, border + 1, device=pixels.device, dtype=pixels.dtype)
        kernel = (-0.5 * (offsets / sigma) ** 2).exp() * (offsets.abs() <= (TRUNCATED_AT * sigma + 0.5).floor())
        kernel = kernel / kernel.sum(1, keepdim=True)
        height, width = pixels.shape[2:]
        every = [torch.arange(size, device=pixels.device) for size in (height, width)]
        rows, columns = (repeated(size, border, pixels.device) for size in (height, width))
        blurred = filtered(pixels, kernel[:, :, None], rows, every[1])
        return filtered(blurred, kernel[:, None, :], every[0], columns)
