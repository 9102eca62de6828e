"""What a network's units make of an image and of its perturbed version."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from hpo.vision.classifier import Classifier
from hpo.vision.device import Compute


@dataclass(frozen=True)
class FeatureMap:
    """Mean activation after a unit, as data URLs: of the clean image and of its perturbed version. moved: how far the
    perturbation moves the features, in relation to their length.
    """

    unit: int
    clean: str
    perturbed: str
    moved: float


def as_png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@torch.no_grad()
def _features(network: Classifier, pixels: Tensor, compute: Compute) -> list[Tensor]:
    """What each unit gives, float32 (n, …)."""
    found, passing = [], network.normalise(pixels.to(compute.device))
    for unit in network.family.units(network.module):
        passing = unit(passing)
        found.append(passing.float().cpu())
    return found


def feature_maps(network: Classifier, views: Mapping[str, Tensor], compute: Compute) -> list[FeatureMap]:
    """Of the first image; at up to five depths whose features are maps."""
    clean, perturbed = (_features(network, pixels[:1], compute) for pixels in views.values())
    depths = [i for i, each in enumerate(clean) if each.ndim == 4 and min(each.shape[-2:]) > 1]
    depths = sorted({depths[i] for i in np.linspace(0, len(depths) - 1, 5).round().astype(int)}) if depths else []
    found = []
    for depth in depths:
        a, b = clean[depth][0].mean(0), perturbed[depth][0].mean(0)
        low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
        moved = float((clean[depth] - perturbed[depth]).norm() / clean[depth].norm().clamp_min(1e-12))
        found.append(FeatureMap(depth + 1, _heat(a, low, high), _heat(b, low, high), moved))
    return found


def _heat(values: Tensor, low: float, high: float) -> str:
    scaled = ((values - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    colours = (255 * colormaps["viridis"](scaled)[..., :3]).astype(np.uint8)
    return as_png(Image.fromarray(colours))


def features_moved(network: Classifier, views: Mapping[str, Tensor], compute: Compute) -> list[float]:
    """The mean over images of how far features move, in relation to their length, after each unit."""
    clean, perturbed = views.values()
    totals: list[float] = []
    count = min(500, len(clean))
    for some, others in zip(clean[:count].split(100), perturbed[:count].split(100), strict=True):
        for depth, (a, b) in enumerate(
            zip(_features(network, some, compute), _features(network, others, compute), strict=True)
        ):
            moved = float(((a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1).clamp_min(1e-12)).sum())
            totals[depth : depth + 1] = [(totals[depth] if depth < len(totals) else 0.0) + moved]
    return [total / count for total in totals]
