"""One image file to RGB pixels of a given size, or the reason why it cannot be decoded."""

import errno
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hpo.errors import DataError
from hpo.vision.data.listing import Listing
from hpo.vision.data.trees import printable

NOT_TO_BE_READ = (None, errno.ENOENT, errno.ELOOP, errno.EACCES)
"""Of an image alone (None: Pillow's own errors); others are a disk's or a network's, which may pass."""
ORIENTATION = 0x0112
WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps what may tell it."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the EXIF orientation that its camera wrote."""


def decode(listing: Listing, path: str, size: int) -> NDArray[np.uint8] | str:
    """uint8 (size, size, 3), upright, grey as RGB; another size is scaled and cropped to its centre.

    Or why it cannot be decoded. Raises DataError if it might be the next time.
    """
    try:
        with listing.open_image(path) as image:
            rgb = _as_rgb(image)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno not in NOT_TO_BE_READ:
            raise DataError(
                f"data.archive: {listing.where}: {printable(path)} cannot be read: {error.strerror}; try again"
            ) from None
        return printable(error.strerror or str(error))
    except Exception as error:  # Pillow raises whatever its decoders do: SyntaxError, struct.error, ...
        return printable(str(error).split("\n")[0] or type(error).__name__)
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Its first frame, upright, on white where it is transparent. Raises ValueError for values of unknown range."""
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
    """1 where it is not known: EXIF that cannot be read is no reason to refuse an image."""
    if image.info.keys().isdisjoint(WITH_ORIENTATION):  # asking Pillow takes a third of the time of a small image
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever damaged EXIF makes Pillow raise
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A grey image whose values have more than 8 bits. Raises ValueError if nothing tells what is white."""
    if image.mode.startswith("I;16"):
        bits = cast(Any, image).tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # which Pillow scales to 16 bits
        bits = 16
    else:
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its values are {kind}, whose range is not known; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.float64)
    scaled = (values * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    scaled[values == image.info.get("transparency")] = 255
    return Image.fromarray(scaled)
