"""Noise that is chosen by gradient, as small as Gaussian noise."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import AdaptivePerturbation

if TYPE_CHECKING:
    from torch import Tensor

    from hpo.doors.perturbation import Gradient, State

STEP = 0.25
"""Of the noise's own size."""


class AdversarialNoise(AdaptivePerturbation):
    """Gaussian noise that is moved up the loss until the image is misclassified, without becoming larger."""

    sigma: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Root mean square of the noise, on the [0, 1] pixel range."""
    severity = "sigma"

    def start(
        self, pixels: "Tensor", keys: "Tensor", severity: "Tensor", restart: int, gradient_at: "Gradient"
    ) -> "State":
        """Gaussian noise."""
        from hpo.vision.random_bits import normal

        sigma = severity.view(-1, 1, 1, 1)
        noise = _sized(normal(keys, pixels[0].numel()).view_as(pixels), sigma)
        return {"images": pixels + noise, "noise": noise, "pixels": pixels, "sigma": sigma}

    def step(self, state: "State", gradient: "Tensor", number: int) -> "State":
        """A step along the gradient. Lin and Nyiam ("Training Robust Networks", 2023) penalise the noise for its size;
        here the size is kept.
        """
        sigma = state["sigma"]
        noise = _sized(state["noise"] + _sized(gradient, STEP * sigma), sigma)
        return state | {"images": state["pixels"] + noise, "noise": noise}


def _sized(noise: "Tensor", size: "Tensor") -> "Tensor":
    """With this root mean square in each image."""
    return noise * (size / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12))
