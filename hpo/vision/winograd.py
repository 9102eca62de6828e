"""3x3 convolutions with a quarter of the multiplications, for a CPU in fp32 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016, arXiv:1509.09308).

On a CPU, nearly all of a ResNet's training step is convolutions, and PyTorch's (oneDNN) already run at the arithmetic
limit, or far below it on maps of 2x2 pixels. Only fewer operations make it faster: along one side, four output pixels
take 6 products of transformed pixels and transformed kernel taps instead of 12, and a map of two pixels takes 3 instead
of 4 (Karatsuba). Each product stands for a matrix product over all images, tiles and channels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

LARGEST_SIZE = 16
TILE = 4

ALGORITHMS = {
    1: (
        ((0, 1, 0),),
        ((0, 1, 0),),
        ((1,),),
    ),
    2: (
        ((0, 1, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0)),
        ((0, 1, 0), (0, -1, 1), (1, -1, 0)),
        ((1, 1, 0), (1, 0, 1)),
    ),
    TILE: (
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}
"""The paper's matrices B^T, G and A^T by the number of output pixels of a tile along a side: they transform pixels (one
more on each side), kernel taps, and products to output pixels. A map of one or two pixels is a single tile with zeros
around it, and needs fewer products than F(4, 3).
"""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution with stride 1 and padding 1.

    Uses Winograd's algorithm where that is faster, which is in fp32 on a CPU, on square maps with sides of 1, 2, or a
    multiple of TILE up to LARGEST_SIZE pixels; otherwise PyTorch's convolution.
    """

    def forward(self, maps: Tensor) -> Tensor:
        size = maps.shape[-1]
        fits = maps.shape[-2] == size <= LARGEST_SIZE and (size <= 2 or size % TILE == 0)
        fp32 = maps.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(maps.device.type)
        if not (fits and fp32 and maps.device.type == "cpu") or torch.compiler.is_compiling():
            return super().forward(maps)
        output = cast(Tensor, _Convolution.apply(maps, self.weight))
        return output if self.bias is None else output + self.bias.view(1, -1, 1, 1)


def replace_convolutions(network: nn.Module) -> None:
    """Replaces, in place, each suitable convolution by a WinogradConv2d with the same parameters.

    Worthwhile if `Compute.gains_from_winograd`. Subclasses of nn.Conv2d, which may compute something else, are kept.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_plain(child):
                channels, has_bias = (child.in_channels, child.out_channels), child.bias is not None
                convolution = WinogradConv2d(*channels, 3, padding=1, bias=has_bias, device="meta")
                convolution.weight, convolution.bias = child.weight, child.bias
                setattr(parent, name, convolution)


def _is_plain(convolution: nn.Conv2d) -> bool:
    shape = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    others = (convolution.groups, convolution.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and others == (1, "zeros")


class _Convolution(torch.autograd.Function):
    """Autograd function of maps (n, channels in, size, size) and a kernel (channels out, channels in, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor) -> Tensor:
        transforms = _transforms(maps.shape[-1])
        pixels = _to_products(transforms.pixels, maps)
        ctx.save_for_backward(pixels, kernel)
        taps = _each(transforms.taps, _flat(kernel))
        return _convolved(transforms, pixels, taps.permute(1, 2, 0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pixels, kernel = ctx.saved_tensors
        transforms = _transforms(gradient.shape[-1])
        of_maps = of_kernel = None
        if ctx.needs_input_grad[1]:  # not in a frozen unit
            of_products = _to_products(transforms.outputs, gradient)
            of_taps = torch.bmm(of_products.permute(1, 2, 0), pixels.transpose(0, 1))
            flat = _each(transforms.taps.T, of_taps.transpose(0, 1))
            of_kernel = flat.view(len(flat), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:  # a convolution with the kernel rotated by 180°
            taps = _each(transforms.taps.flip(1), _flat(kernel))
            of_maps = _convolved(transforms, _to_products(transforms.pixels, gradient), taps.transpose(0, 1))
        return of_maps, of_kernel


@dataclass(frozen=True)
class _Transforms:
    """The matrices for maps of one size.

    pixels, outputs: float32 (tiles, products, size), between one side of a map and the products of each of its tiles;
    taps: float32 (products of both sides, 9).
    """

    pixels: Tensor
    taps: Tensor
    outputs: Tensor


@cache
def _transforms(size: int) -> _Transforms:
    width = min(size, TILE)
    of_pixels, of_taps, to_outputs = (torch.tensor(rows, dtype=torch.float32) for rows in ALGORITHMS[width])
    tiles = size // width
    pixels = torch.zeros(tiles, len(of_pixels), size + 2)
    outputs = torch.zeros(tiles, len(of_pixels), size)
    for tile, start in enumerate(range(0, size, width)):
        pixels[tile, :, start : start + width + 2] = of_pixels
        outputs[tile, :, start : start + width] = to_outputs.T
    return _Transforms(pixels[:, :, 1:-1].contiguous(), torch.kron(of_taps, of_taps), outputs)


def _flat(kernel: Tensor) -> Tensor:
    """The kernel as (channels out, 9, channels in); not copied if it is channels_last."""
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), 9, -1)


def _convolved(transforms: _Transforms, pixels: Tensor, taps: Tensor) -> Tensor:
    """The convolved maps, (n, channels out, size, size), channels_last.

    pixels: the result of _to_products for the maps; taps: (products of both sides, channels in, channels out).
    """
    tiles, along, size = transforms.outputs.shape
    channels = taps.shape[-1]
    products = torch.bmm(pixels.transpose(0, 1), taps)
    one_tile = transforms.outputs[0, :, : size // tiles].T
    rows = _each(one_tile, products.view(along, -1, channels).transpose(0, 1))
    all_tiles = transforms.outputs.permute(2, 1, 0).reshape(size, -1)
    outputs = _each(all_tiles, rows.view(along * tiles, -1, channels).transpose(0, 1))
    return outputs.view(-1, size, size, channels).permute(0, 3, 1, 2)


def _to_products(transform: Tensor, maps: Tensor) -> Tensor:
    """Maps (n, channels, size, size) as (tiles, products of both sides, channels).

    Tiles are ordered by column, then image, then row, which needs no copies.
    """
    tiles, along, size = transform.shape
    n, channels = maps.shape[:2]
    matrix = transform.view(-1, size)
    columns = _each(matrix, maps.permute(0, 2, 3, 1).reshape(n * size, size, channels)).view(n, size, tiles, -1)
    products = maps.new_empty(tiles, n, tiles * along, along * channels)
    for tile in range(tiles):
        torch.bmm(matrix.expand(n, *matrix.shape), columns[:, :, tile], out=products[tile])
    return products.view(-1, along * along, channels)


def _each(matrix: Tensor, items: Tensor) -> Tensor:
    """The product of the matrix and each item, batched: (n, rows, columns)."""
    return torch.bmm(matrix.expand(len(items), *matrix.shape), items)
