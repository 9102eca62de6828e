"""Small studies on the bundled digits."""

from pathlib import Path

import tomli_w

from hpo.study_file.images import ImageSpec
from hpo.study_file.reading import read_spec

STUDIES = Path(__file__).parents[2] / "studies"


def make_spec(**changes: object) -> ImageSpec:
    """A valid spec on digits, with some keys changed."""
    document: dict[str, object] = {
        "name": "study",
        "budget": 6,
        "data": {"name": "digits"},
        "model": {"weights": "none", "input_size": 16},
        "training": {"epochs": 3, "horizontal_flip": False},
        "search": {
            "batch_size": {"choices": [16, 32, 64]},
            "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            "frozen_layers": {"low": 0, "high": 4},
            "augmentation_strength": {"low": 0.0, "high": 1.0},
        },
        "objective": {
            "clean": 0.5,
            "perturbations": [
                {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.25},
                {"name": "pixel-recolor", "fraction": 0.2, "weight": 0.25},
            ],
        },
        "sampler": {"name": "random"},  # of the others a Gaussian process takes longer than many a test
        "pruner": {"name": "none"},
    }
    spec = read_spec(document | changes)
    assert isinstance(spec, ImageSpec)
    return spec


def write_study(folder: Path, **changes: object) -> str:
    """A study file on digits that trains for seconds; its path."""
    small = {
        "data": {"name": "digits", "images_per_class": 8, "validation_fraction": 0.05},
        "training": {"epochs": 2, "horizontal_flip": False},
        "budget": 4,
    }
    file = folder / "study.toml"
    file.write_text(tomli_w.dumps(make_spec(**small | changes).model_dump(exclude_none=True)), encoding="utf-8")
    return str(file)
