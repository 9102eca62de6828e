"""Fog, as a fractal cloud before the picture."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

DECAYS = ((0.0, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75))
"""The benchmark's decay of the fractal's roughness from scale to scale, by strength; linear between."""


class Fog(LeveledPerturbation):
    """Adds a fractal cloud and darkens the rest, so that the brightest stays as bright."""

    strength: Annotated[float, Field(gt=0, le=10)]
    """The cloud's largest value, before it is darkened with the image."""
    severity = "strength"
    levels = (0.4, 0.7, 1, 1.5, 2)

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Each image has a cloud of its own."""
        from hpo.vision.filters import interpolated

        height, width = pixels.shape[2:]
        clouds = _clouds(keys, max(height, width), interpolated(severity, DECAYS))[:, None, :height, :width]
        strength = severity.view(-1, 1, 1, 1)
        brightest = pixels.amax((1, 2, 3), keepdim=True)
        foggy = (pixels + strength * clouds) * brightest / (brightest + strength).clamp(min=1e-6)
        return foggy.clamp_(0, 1).where(strength > 0, pixels)


def _clouds(keys: "Tensor", size: int, decay: "Tensor") -> "Tensor":
    """Plasma fractals by the diamond-square algorithm (Fournier, Fussell and Carpenter, "Computer rendering of
    stochastic models", 1982), from 0 to 1: float32 (n, s, s), s a power of 2 and at least `size`; they wrap around.
    """
    import torch

    from hpo.vision.random_bits import derive_keys, uniform

    step = 1 << max(1, (size - 1).bit_length())
    heights = torch.zeros(len(keys), step, step, device=keys.device)
    roughness = torch.full_like(decay, 100.0).view(-1, 1, 1)

    def rough(total: "Tensor", name: str) -> "Tensor":
        draws = uniform(derive_keys(keys, name, step), total[0].numel()).view_as(total)
        return total / 4 + roughness**2 * (2 * draws - 1)

    while step >= 2:
        corners, half = heights[:, ::step, ::step], step // 2
        square = corners + corners.roll(-1, 1)
        middles = rough(square + square.roll(-1, 2), "squares")
        heights[:, half::step, half::step] = middles
        heights[:, ::step, half::step] = rough(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2), "rows")
        heights[:, half::step, ::step] = rough(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1), "columns")
        step = half
        roughness = roughness / decay.view(-1, 1, 1)
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True).clamp(min=1e-6)
