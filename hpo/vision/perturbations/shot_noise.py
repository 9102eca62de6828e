"""The noise of few photons."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor

EXACT_BELOW = 12.0
"""Expected photons; above, a Poisson variable is drawn from its Cornish-Fisher expansion."""
MOST_COUNTED = 48
"""More photons than that have a probability below 1e-13 where so few are expected."""


class ShotNoise(LeveledPerturbation):
    """Poisson noise: the noise of few photons, which grows with brightness."""

    photons: Annotated[float, Field(gt=0, le=100_000)]
    """Expected number of photons at brightness 1; the fewer, the noisier."""
    severity = "photons"
    levels = (250, 100, 50, 30, 15)

    @property
    def scored_severity(self) -> float:
        """The variance at brightness 1."""
        return 1 / self.photons

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Draws the number of photons of each value by inverting the Poisson distribution, and clips to [0, 1]."""
        import torch

        from hpo.vision.random_bits import derive_keys, normal, uniform

        count = pixels[0].numel()
        some = severity.view(-1, 1, 1, 1).clamp(min=1e-6)
        expected = pixels / some
        few = expected.clamp(max=EXACT_BELOW)
        draws = uniform(derive_keys(keys, "few"), count).view_as(pixels)
        probability = (-few).exp()
        below = probability.clone()
        photons = torch.zeros_like(pixels)
        for number in range(1, MOST_COUNTED):
            photons += draws >= below
            probability = probability * few / number
            below += probability
        z = normal(derive_keys(keys, "many"), count).view_as(pixels)
        many = (expected + expected.sqrt() * z + (z * z - 1) / 6).round_().clamp_(min=0)
        noisy = (torch.where(expected < EXACT_BELOW, photons, many) * some).clamp_(0, 1)
        return torch.where(severity.view(-1, 1, 1, 1) > 0, noisy, pixels)
