"""Pictures of a trial: how it learned, and what its network says of some images, clean and perturbed. PNG, small."""

import io
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpo.vision.device import Compute
from hpo.vision.evaluation import EvaluationSet
from hpo.vision.network import Classifier

IMAGES = 8
DPI = 80
RIGHT, WRONG = "#1a7f37", "#cf222e"


def draw_curve(by_epoch: Sequence[Mapping[str, float]]) -> bytes:
    """Accuracies (0 to 1) by name after each epoch."""
    figure = Figure(figsize=(6, 3.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="accuracy on the tuning images, %")
    epochs = range(1, len(by_epoch) + 1)
    for name in by_epoch[-1]:
        axes.plot(epochs, [100 * accuracies[name] for accuracies in by_epoch], marker="o", markersize=3, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return _as_png(figure)


@torch.inference_mode()
def draw_predictions(
    network: Classifier, images: EvaluationSet, classes: Sequence[str], compute: Compute, count: int = IMAGES
) -> bytes:
    """A column an image, spread over the classes; a row a condition. Over each what the network takes it for, and how
    surely; green where that is right. Leaves the network in eval mode.
    """
    network.eval()
    chosen = torch.linspace(0, len(images.labels) - 1, min(count, len(images.labels)), device=images.labels.device)
    rows = torch.argsort(images.labels, stable=True)[chosen.round().long()]
    labels = images.labels[rows].tolist()
    figure = Figure(figsize=(1.35 * len(rows), 1.75 * len(images.conditions) + 0.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(images.conditions), len(rows), squeeze=False)
    for line, (condition, pixels) in zip(grid, images.conditions.items(), strict=True):
        with compute.autocast():
            logits = network(pixels[rows])
        surest = logits.softmax(1).max(1)
        for axes, image, label, guess, surely in zip(
            line, pixels[rows].cpu(), labels, surest.indices.tolist(), surest.values.tolist(), strict=True
        ):
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            colour = RIGHT if guess == label else WRONG
            axes.set_title(f"{classes[guess]}: {100 * surely:.0f} %", fontsize=8, color=colour, parse_math=False)
        line[0].set_ylabel(condition, fontsize=8)
    for axes, label in zip(grid[-1], labels, strict=True):
        axes.set_xlabel(f"is {classes[label]}", fontsize=8, parse_math=False)
    return _as_png(figure)


def _as_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
