"""scikit-learn's handwritten digits, the one source that needs no files."""

from contextlib import nullcontext

import numpy as np
from PIL import Image

from hpo.vision.data.listing import Listing, hold_out_test_images


def list_digits() -> Listing:
    """Lists 1,797 scans of handwritten digits, 8x8 pixels, grey (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in digits.target]
    classes = tuple(str(name) for name in digits.target_names)
    kept, held_out = hold_out_test_images(labels, classes, "digits")
    return Listing(
        where="scikit-learn's digits",
        classes=classes,
        train=[(str(i), labels[i]) for i in kept],
        test=[(str(i), labels[i]) for i in held_out],
        open_image=lambda path: nullcontext(Image.fromarray(scans[int(path)])),
    )
