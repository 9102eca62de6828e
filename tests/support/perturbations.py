"""Perturbations as a spec has them, for tests that need no whole spec."""

from hpo.doors.perturbation import PERTURBATIONS, Perturbation


def perturbations(sigma: float, fraction: float) -> list[Perturbation]:
    """Gaussian noise and recoloured pixels, as a spec has them."""
    half = {"weight": 0.25}
    noise, recolor = PERTURBATIONS.find("gaussian-noise"), PERTURBATIONS.find("pixel-recolor")
    return [
        noise.model_validate({"name": "gaussian-noise", "sigma": sigma, **half}),
        recolor.model_validate({"name": "pixel-recolor", "fraction": fraction, **half}),
    ]
