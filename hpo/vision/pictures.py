"""Pictures of a trial, small PNGs: its training curve, and predictions for some images, clean and perturbed."""

import io
import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpo.vision.classifier import Classifier
from hpo.vision.device import Compute
from hpo.vision.scoring import EvaluationSet

IMAGES = 8
DPI = 80
COLUMN, ROW, MARGIN = 1.08, 1.3, 0.25
"""In widths of an image: the distance between columns and rows, and the margin for labels."""
RIGHT, WRONG = "#1a7f37", "#cf222e"


def draw_curve(by_epoch: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the accuracies (0 to 1) by name, after each epoch."""
    figure = Figure(figsize=(6, 3.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="accuracy on the tuning images, %")
    epochs = range(1, len(by_epoch) + 1)
    for name in by_epoch[-1]:
        axes.plot(
            epochs,
            [100 * accuracies.get(name, math.nan) for accuracies in by_epoch],
            marker="o",
            markersize=3,
            label=name,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return _as_png(figure)


@torch.inference_mode()
def draw_predictions(
    network: Classifier, images: EvaluationSet, classes: Sequence[str], compute: Compute, count: int = IMAGES
) -> bytes:
    """A PNG with a column per image, spread over the classes, and a row per condition. The prediction and its
    probability stand above each image, green if correct. Leaves the network in eval mode.
    """
    network.eval()
    chosen = torch.linspace(0, len(images.labels) - 1, min(count, len(images.labels)), device=images.labels.device)
    rows = torch.argsort(images.labels, stable=True)[chosen.round().long()]
    labels = images.labels[rows].tolist()
    width, height = len(rows) * COLUMN + MARGIN, len(images.conditions) * ROW + MARGIN
    figure = Figure(figsize=(1.25 * width, 1.25 * height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: laying out many axes takes 1 s
    for line, (condition, pixels) in enumerate(images.conditions.items()):
        with compute.autocast():
            logits = network(pixels[rows])
        surest = logits.softmax(1).max(1)
        top = line * ROW + ROW - 1
        for column, (image, label, guess, surely) in enumerate(
            zip(pixels[rows].cpu(), labels, surest.indices.tolist(), surest.values.tolist(), strict=True)
        ):
            left = MARGIN + column * COLUMN
            edges = (left, left + 1, top + 1, top)
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", extent=edges)
            said, colour = f"{classes[guess]}: {100 * surely:.0f} %", RIGHT if guess == label else WRONG
            axes.text(left + 0.5, top - 0.06, said, ha="center", fontsize=8, color=colour, parse_math=False)
        axes.text(MARGIN / 2, top + 0.5, condition, rotation=90, ha="center", va="center", fontsize=8)
    for column, label in enumerate(labels):
        middle = MARGIN + column * COLUMN + 0.5
        axes.text(middle, height - 0.06, f"is {classes[label]}", ha="center", fontsize=8, parse_math=False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return _as_png(figure)


def _as_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
