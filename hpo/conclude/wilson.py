"""How precisely an accuracy is known, of a single training: by the number of images alone."""

import math


def half_width(accuracy: float, images: int) -> float:
    """Half the width of the 95 % confidence interval of an accuracy measured on this many images.

    Wilson's interval, whose width is not 0 when all images were classified correctly.
    """
    z = 1.96
    return z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
