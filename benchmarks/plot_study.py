"""Draws how the trials of a study learned: clean and perturbed accuracy by epoch, the baseline and the best in colour.

    pip install --group pictures
    python benchmarks/plot_study.py STUDY docs/picture.png [STORAGE]

The README's picture is made by it.
"""

import sys

import matplotlib.pyplot as plt
import sqlalchemy as sa
from matplotlib.axes import Axes

from hpo.search.sql.queries import TrialResult, best_trials, trials_in
from hpo.search.sql.storage import open_engine
from hpo.search.sql.url import DEFAULT_STORAGE, parse_url


def plot(engine: sa.Engine, study: str, file: str) -> None:
    """Two panels, clean and mean perturbed accuracy; a line a trial, pruned ones end early."""
    trials = trials_in(engine, study, ("COMPLETE", "PRUNED"))
    best = best_trials(engine, study, 1)[0]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), dpi=160, sharey=True)
    for axes, what in zip(panels, ("clean", "perturbed"), strict=True):
        for trial in trials:
            draw(axes, trial, what, best.number)
        axes.set_title(f"{what} accuracy, %", fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=9)
    figure.suptitle(f"{study}: {len(trials)} trials, {best.images:,} tuning images, one seed", fontsize=10)
    figure.tight_layout()
    figure.savefig(file)


def draw(axes: Axes, trial: TrialResult, what: str, best: int) -> None:
    """One trial's line; the baseline's and the best's stand in the legend with their last accuracy."""
    values = [100 * accuracy(record, what) for record in trial.epochs]
    name, color = None, "#b5b5b5"
    if trial.baseline:
        name, color = "baseline", "#d95f02"
    elif trial.number == best:
        name, color = f"best, trial {best}", "#1f77b4"
    axes.plot(
        [record["epoch"] for record in trial.epochs],
        values,
        color=color,
        label=f"{name}: {values[-1]:.1f}" if name else None,
        marker=".",
        linewidth=2 if name else 0.8,
        zorder=3 if name else 2,
    )


def accuracy(record: dict[str, float], what: str) -> float:
    """The clean, or the mean perturbed accuracy of one epoch."""
    perturbed = [value for key, value in record.items() if key not in ("epoch", "score", "clean")]
    return record["clean"] if what == "clean" else sum(perturbed) / len(perturbed)


if __name__ == "__main__":
    name, output, *storage = sys.argv[1:]
    plot(open_engine(parse_url(storage[0] if storage else DEFAULT_STORAGE)), name, output)
