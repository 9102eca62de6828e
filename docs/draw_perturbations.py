"""`python docs/draw_perturbations.py` draws perturbations.png: a picture that comes with scikit-learn under each
perturbation, at five levels.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from hpo.doors.perturbation import LEVELS, PERTURBATIONS, LeveledPerturbation
from hpo.vision.scoring import perturb

OTHERS = {
    "pixel-recolor": ("fraction", (0.02, 0.05, 0.1, 0.2, 0.4)),
    "salt-and-pepper": ("amount", (0.02, 0.05, 0.1, 0.2, 0.4)),
}


def picture() -> torch.Tensor:
    """float32 (1, 3, 64, 64) in [0, 1]."""
    whole = Image.fromarray(load_sample_image("china.jpg")).crop((180, 20, 580, 420))
    small = np.asarray(whole.resize((64, 64), Image.Resampling.BOX))
    return torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 255


def main() -> None:
    plain, names = picture(), PERTURBATIONS.own()
    figure = Figure(figsize=(9, 0.8 * len(names) / 2))
    axes = figure.subplots(-(-len(names) // 2), 2 * (LEVELS + 1))
    for each in axes.flat:
        each.set_axis_off()
    for number, name in enumerate(names):
        kind = PERTURBATIONS.find(name)
        row, first = axes[number // 2], (number % 2) * (LEVELS + 1)
        row[first].text(1, 0.5, name, ha="right", va="center", fontsize=7)
        for level in range(1, LEVELS + 1):
            if issubclass(kind, LeveledPerturbation):
                settings = {"level": level}
            else:
                key, values = OTHERS[name]
                settings = {key: values[level - 1]}
            severity = kind.model_validate({"name": name, "weight": 1, **settings}).scored_severity
            shown = perturb(kind, name, plain, torch.arange(1), severity, replicate=0)[0].permute(1, 2, 0)
            row[first + level].imshow(shown.numpy(), interpolation="nearest")
            if not number // 2:
                row[first + level].set_title(level, fontsize=7)
    figure.subplots_adjust(0, 0.005, 1, 0.975, wspace=0.05, hspace=0.05)
    figure.savefig(Path(__file__).parent / "perturbations.png", dpi=120)


if __name__ == "__main__":
    main()
