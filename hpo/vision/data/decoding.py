"""Decodes images to RGB pixels of a given size, or says why that is impossible."""

import errno
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hpo.cores import cores
from hpo.errors import DataError
from hpo.vision.data.listing import Listing
from hpo.vision.data.trees import printable

NAMED = 10
"""Number of bad images named in an error."""
NOT_TO_BE_READ = (None, errno.ENOENT, errno.ELOOP, errno.EACCES)
"""Error numbers that concern one image only (None: Pillow's own errors). Others, of a disk or network, may pass."""
ORIENTATION = 0x0112
WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Keys of `Image.info` under which Pillow keeps data that may contain the orientation."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image upright, by its EXIF orientation."""


def write_pixels(
    listing: Listing,
    entries: Sequence[tuple[str, int]],
    size: int,
    file: BinaryIO,
    bad: dict[str, str],
    tell: Callable[[], None] = lambda: None,
) -> NDArray[np.int64]:
    """Appends the decoded images to `file` and returns their labels, int64 (n,), in the same order.

    entries: (path, label) pairs; images that cannot be decoded are added to `bad`, by path, with the reason; tell:
    called after each image. Written without a memory map, where a full disk would kill the process.
    """
    labels = []
    pool = ThreadPoolExecutor(max_workers=cores())
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of unusual headers
            decoded = pool.map(lambda entry: decode(listing, entry[0], size), entries)
            for (path, label), image in zip(entries, decoded, strict=True):
                if isinstance(image, str):
                    bad[printable(path)] = image
                else:
                    file.write(image.data)
                    labels.append(label)
                tell()
    finally:
        pool.shutdown(cancel_futures=True)
    return np.array(labels, dtype=np.int64)


def named_with_reasons(bad: Mapping[str, str], total: int) -> str:
    """Which images cannot be decoded and why. bad: the reason for each, by path; total: number of all images."""
    if len(bad) == 1:
        ((path, reason),) = bad.items()
        return f"{path} cannot be decoded: {reason}"
    listed = [f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED]]
    more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return f"{len(bad):,} of {total:,} images cannot be decoded: {', '.join(listed)}{more}"


def decode(listing: Listing, path: str, size: int) -> NDArray[np.uint8] | str:
    """Pixels, uint8 (size, size, 3): upright, RGB, scaled and cropped to the centre where the size differs.

    Returns the reason as text if the image cannot be decoded. Raises DataError if another attempt might succeed.
    """
    try:
        with listing.open_image(path) as image:
            rgb = _as_rgb(image)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno not in NOT_TO_BE_READ:
            raise DataError(f"{listing.where}: {printable(path)} cannot be read: {error.strerror}; try again") from None
        return printable(error.strerror or str(error))
    except Exception as error:  # Pillow lets its decoders' errors through: SyntaxError, struct.error, …
        return printable(str(error).split("\n")[0] or type(error).__name__)
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    """The first frame, upright, on white where transparent. Raises ValueError if the range of values is unknown."""
    image.load()
    turned = UPRIGHT.get(_orientation(image))
    if image.mode[0] in "IF":
        image = _in_8_bits(image)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    rgb = image.convert("RGB")
    return rgb.transpose(turned) if turned is not None else rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if unknown, since unreadable EXIF is no reason to refuse an image."""
    if image.info.keys().isdisjoint(WITH_ORIENTATION):  # getexif() takes a third of the time of decoding a small image
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF makes Pillow raise almost anything
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A greyscale image with more than 8 bits per value, scaled to 8.

    Raises ValueError if its format does not define which value is white.
    """
    if image.mode.startswith("I;16"):
        bits = cast(Any, image).tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        bits = 16
    else:
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its values are {kind}, whose range is not known; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.float64)
    scaled = (values * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    scaled[values == image.info.get("transparency")] = 255
    return Image.fromarray(scaled)
