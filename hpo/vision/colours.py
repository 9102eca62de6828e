"""Between red, green and blue and hue, saturation and value, for whole batches, as in scikit-image and matplotlib."""

import torch
from torch import Tensor


def to_hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value, each float32 (n, height, width) in [0, 1]. pixels: (n, 3, height, width) in [0, 1]."""
    red, green, blue = pixels.unbind(1)
    value, least = pixels.amax(1), pixels.amin(1)
    chroma = value - least
    some = chroma.clamp(min=torch.finfo(pixels.dtype).tiny)
    hue = torch.where(
        value == red,
        (green - blue) / some,
        torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    hue = torch.where(chroma > 0, hue / 6 % 1, 0)
    return hue, torch.where(value > 0, chroma / value.clamp(min=torch.finfo(pixels.dtype).tiny), 0), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse: pixels, float32 (n, 3, height, width)."""
    channels = []
    for offset in (5, 3, 1):
        distance = (hue * 6 + offset) % 6
        channels.append(value - value * saturation * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.stack(channels, 1)
