"""What happens to images between the perturbations and a network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.doors.network import Channels


class Normalise(nn.Module):
    """Scales and normalises pixels for the first convolution. channels: their mean and standard deviation.

    Input: uint8, or floats in [0, 1], (n, 3, any height, any width). Output: (n, 3, size, size), channels_last.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, channels: tuple[Channels, Channels]) -> None:
        super().__init__()
        self.size = size
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in channels)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(255)
        if pixels.shape[-1] != self.size or pixels.shape[-2] != self.size:
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
