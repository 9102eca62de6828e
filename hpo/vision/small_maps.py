"""3x3 convolutions of maps of one or four pixels, as matrix products: the last blocks of a ResNet on small images.

For the gradient of such a convolution's weights, oneDNN without AVX-512 takes four to ten times as long as for the
convolution itself: a quarter of a training step of ResNet-18 at 64 pixels. Here each input pixel reaches each output
pixel through one tap of the kernel, so that the convolution is a dense layer whose weights are the kernel's, arranged.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

LARGEST_SIZE = 2


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution, stride 1, padding 1; a matrix product where that is faster: in fp32 on a CPU, on maps of up to
    LARGEST_SIZE pixels each way.
    """

    def forward(self, maps: Tensor) -> Tensor:
        small = maps.shape[-1] == maps.shape[-2] <= LARGEST_SIZE
        fp32 = maps.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(maps.device.type)
        if not (small and fp32 and maps.device.type == "cpu"):
            return super().forward(maps)
        output = cast(Tensor, _DenseConvolution.apply(maps, self.weight))
        return output if self.bias is None else output + self.bias.view(1, -1, 1, 1)


def replace_convolutions(network: nn.Module) -> None:
    """Puts a SmallMapConv2d with the same parameters in the place of each convolution that it can stand for."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _is_plain(child):
                convolution = nn.utils.skip_init(
                    SmallMapConv2d, child.in_channels, child.out_channels, 3, padding=1, bias=child.bias is not None
                )
                convolution.weight, convolution.bias = child.weight, child.bias
                setattr(parent, name, convolution)


def _is_plain(convolution: nn.Conv2d) -> bool:
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    others = (convolution.groups, convolution.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and others == (1, "zeros")


class _DenseConvolution(torch.autograd.Function):
    """maps: (n, channels in, size, size); kernel: (channels out, channels in, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor) -> Tensor:
        size = maps.shape[-1]
        pixels = maps.permute(0, 2, 3, 1).reshape(len(maps), -1)
        dense = kernel.new_empty(size, size, len(kernel), size, size, kernel.shape[1])
        for (to_row, to_column), (row, column), tap in _taps(size):
            dense[to_row, to_column, :, row, column] = kernel[:, :, *tap]
        dense = dense.view(size * size * len(kernel), -1)
        ctx.save_for_backward(pixels, dense)
        return _as_maps(pixels @ dense.T, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        pixels, dense = ctx.saved_tensors
        size, channels = gradient.shape[-1], gradient.shape[1]
        by_pixel = gradient.permute(0, 2, 3, 1).reshape(len(gradient), -1)
        of_dense = (by_pixel.T @ pixels).view(size, size, channels, size, size, -1)
        of_kernel = gradient.new_zeros(channels, 3, 3, of_dense.shape[-1])  # in memory as channels_last weights are
        for (to_row, to_column), (row, column), tap in _taps(size):
            of_kernel[:, *tap] += of_dense[to_row, to_column, :, row, column]
        return _as_maps(by_pixel @ dense, size), of_kernel.permute(0, 3, 1, 2)


def _taps(size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """(output pixel, input pixel, the kernel's tap between them), each as row and column."""
    for to_row, to_column, row, column in product(range(size), repeat=4):
        yield (to_row, to_column), (row, column), (row - to_row + 1, column - to_column + 1)


def _as_maps(pixels: Tensor, size: int) -> Tensor:
    """(n, channels, size, size), channels_last, of (n, size * size * channels)."""
    return pixels.view(len(pixels), size, size, -1).permute(0, 3, 1, 2)
