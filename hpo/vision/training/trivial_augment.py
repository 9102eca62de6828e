"""TrivialAugment (Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021,
arXiv:2103.10158): each image gets one operation, at a random one of 31 levels.

Operations and levels are those of torchvision's TrivialAugmentWide, which draws one for a whole call. Here images are
grouped by operation, so that a batch takes a few operations on tensors, whatever the levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.vision.device import upload
from hpo.vision.random_bits import uniform

LEVELS = 31
LARGEST_FACTOR = 0.99
LARGEST_SHIFT = 32
"""Pixels."""
LARGEST_ANGLE = 135
"""Degrees."""
GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Operations:
    """What n images get; all tensors are on the CPU. drawn: float32 (n, 3), the number of an image's operation, its
    level, 0 to 1, and 1 or -1; order: int64 (n,), the image at each position, by operation; back: int64 (n,), the
    inverse; counts: number of images for each operation.
    """

    drawn: Tensor
    order: Tensor
    back: Tensor
    counts: tuple[int, ...]

    def of(self, some: slice) -> "Operations":
        """Those of some of the images."""
        return by_operation(self.drawn[some])

    def __call__(self, images: Tensor) -> Tensor:
        """These images, uint8 (n, height, width, 3) on any device, augmented; never waits for the device."""
        device = images.device
        groups = images.index_select(0, upload(self.order, device)).split(self.counts)
        settings = upload(self.drawn[self.order, 1:], device).split(self.counts)
        augmented = [
            operation(some, *levels.view(-1, 2, 1, 1, 1).unbind(1)) if len(some) else some
            for operation, some, levels in zip(OPERATIONS, groups, settings, strict=True)
        ]
        return torch.cat(augmented).index_select(0, upload(self.back, device))


def draw_operations(keys: Tensor) -> Operations:
    """From keys, int64 (n,)."""
    which, level, sign = uniform(keys, 3).unbind(1)
    level = (level * LEVELS).floor().clamp(max=LEVELS - 1) / (LEVELS - 1)
    which = (which * len(OPERATIONS)).floor().clamp(max=len(OPERATIONS) - 1)
    return by_operation(torch.stack([which, level, torch.where(sign < 0.5, -1.0, 1.0)], dim=1))


def by_operation(drawn: Tensor) -> Operations:
    """drawn: see `Operations`."""
    which = drawn[:, 0].long()
    order = which.argsort(stable=True)
    return Operations(drawn, order, order.argsort(), tuple(which.bincount(minlength=len(OPERATIONS)).tolist()))


# Each operation: images, uint8 (n, height, width, 3); level, 0 to 1, and sign, 1 or -1: float32 (n, 1, 1, 1).


def _identity(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return images


def _shear_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    rows, columns = _positions(images)
    return _sampled(images, rows, columns + sign * level * LARGEST_FACTOR * (rows + 0.5))


def _shear_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    rows, columns = _positions(images)
    return _sampled(images, rows + sign * level * LARGEST_FACTOR * (columns + 0.5), columns)


def _translate_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    rows, columns = _positions(images)
    return _sampled(images, rows, columns - sign * (level * LARGEST_SHIFT).floor())


def _translate_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    rows, columns = _positions(images)
    return _sampled(images, rows - sign * (level * LARGEST_SHIFT).floor(), columns)


def _rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    angle = sign * level * math.radians(LARGEST_ANGLE)
    rows, columns = _positions(images)
    middle_row, middle_column = ((size - 1) / 2 for size in images.shape[1:3])
    y, x = rows - middle_row, columns - middle_column
    return _sampled(
        images, angle.sin() * x + angle.cos() * y + middle_row, angle.cos() * x - angle.sin() * y + middle_column
    )


def _brightness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blended(images, torch.zeros_like(images), level, sign)


def _colour(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blended(images, _grey(images), level, sign)


def _contrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blended(images, _grey(images).mean((1, 2, 3), keepdim=True), level, sign)


def _sharpness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Borders stay as they are."""
    if min(images.shape[1:3]) < 3:
        return images
    pixels = images.float()
    inner = pixels[:, 1:-1, 1:-1]
    tall = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    smooth = pixels.clone()
    smooth[:, 1:-1, 1:-1] = ((tall[:, :, :-2] + tall[:, :, 1:-1] + tall[:, :, 2:] + 4 * inner) / 13).round()
    return _blended(images, smooth, level, sign)


def _posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keeps the highest 8 to 2 bits."""
    lost = (level * 6).round()
    return images & (256 - 2**lost).to(torch.uint8)


def _solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    threshold = 255 * (1 - level) - 0.01  # every other one is a whole number, which rounding may exceed
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255."""
    pixels = images.float()
    least, most = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    stretched = ((pixels - least) / ((most - least).clamp(min=1) / 255)).clamp(0, 255)
    return torch.where(most > least, stretched, pixels).to(torch.uint8)


def _equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Pillow's: a channel's value becomes the number of pixels below it, in 255ths of the number below its largest."""
    channels = images.permute(0, 3, 1, 2).flatten(2).contiguous()
    in_order = channels.sort(dim=2).values
    below = torch.searchsorted(in_order, channels)
    step = torch.searchsorted(in_order, in_order[..., -1:].contiguous()) // 255
    equal = ((below + step // 2) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    changed: Tensor = torch.where(step > 0, equal, channels)
    return changed.view(images.permute(0, 3, 1, 2).shape).permute(0, 2, 3, 1)


OPERATIONS = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, float32 (1, height, 1, 1) and (1, 1, width, 1)."""
    rows, columns = (torch.arange(size, device=images.device, dtype=torch.float32) for size in images.shape[1:3])
    return rows.view(1, -1, 1, 1), columns.view(1, 1, -1, 1)


def _sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels nearest to these places, which broadcast to (n, height, width, 1); black beyond the borders."""
    count, height, width, _ = images.shape
    rows, columns = (places.expand(count, height, width, 1)[..., 0].round().long() for places in (rows, columns))
    within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    which = torch.arange(count, device=images.device).view(-1, 1, 1)
    return images[which, rows.clamp(0, height - 1), columns.clamp(0, width - 1)] * within[..., None]


def _blended(images: Tensor, others: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Towards the others or away from them, by up to LARGEST_FACTOR of the difference."""
    ratio = 1 + sign * level * LARGEST_FACTOR
    return (images * ratio + others * (1 - ratio)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """float32 (n, height, width, 1), whole numbers."""
    red, green, blue = images.float().unbind(3)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor()[..., None]
