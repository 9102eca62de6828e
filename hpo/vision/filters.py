"""Filters of whole batches, with a kernel for each image."""

import torch
from torch import Tensor


def filtered(pixels: Tensor, kernels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Correlates each image with a kernel of its own.

    pixels: (n, channels, height, width); kernels: (n, kernel height, kernel width), of odd sizes; rows and columns:
    int64, which rows and columns of the image stand at the positions of the image with a border (`reflected`,
    `repeated`).
    """
    height, width = pixels.shape[2:]
    bordered = pixels.index_select(2, rows).index_select(3, columns)
    found = torch.zeros_like(pixels)
    for row in range(kernels.shape[1]):  # a grouped convolution's last digits depend on how many images there are
        for column in range(kernels.shape[2]):
            found += kernels[:, row, column, None, None, None] * bordered[:, :, row:, column:][:, :, :height, :width]
    return found


def reflected(size: int, border: int, device: torch.device) -> Tensor:
    """Positions -border to size + border - 1, mirrored about the first and last: dcb|abcd|cba."""
    period = max(1, 2 * (size - 1))
    positions = torch.arange(-border, size + border, device=device).abs() % period
    return torch.minimum(positions, period - positions) if size > 1 else positions


def repeated(size: int, border: int, device: torch.device) -> Tensor:
    """The same positions, the first and last repeated beyond the image: aaa|abcd|ddd."""
    return torch.arange(-border, size + border, device=device).clamp(0, size - 1)


def interpolated(at: Tensor, points: tuple[tuple[float, float], ...]) -> Tensor:
    """A function that is linear between these points and constant beyond them. at: any shape."""
    xs, ys = (torch.tensor(values, dtype=at.dtype, device=at.device) for values in zip(*points, strict=True))
    right = torch.searchsorted(xs, at.contiguous()).clamp(1, len(xs) - 1)
    share = ((at - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return ys[right - 1] + share * (ys[right] - ys[right - 1])
