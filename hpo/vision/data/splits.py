"""Stratified splits. A dozen lines of our own: importing scikit-learn for them cost every worker 1.2 s at its start."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], classes: Sequence[str], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(kept, held out) positions, each ascending: of every class the same fraction, at least one image on each side.

    classes: their names, by label. Raises ValueError if a class has fewer than two images.
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
