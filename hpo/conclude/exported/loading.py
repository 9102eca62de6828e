"""Reads a network that `hpo export` wrote."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from hpo.errors import InputError
from hpo.vision.classifier import Classifier, build_network

CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"


def load_model(folder: Path) -> Classifier:
    """The network in eval mode, on the CPU: takes images, uint8 or floats in [0, 1], (n, 3, height, width), and gives
    logits, float32 (n, classes), whose order `classes` has. Raises InputError.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name, classes, size = config["network"], config["classes"], config["input_size"]
        weights = load_file(folder / MODEL_FILE)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no network that `hpo export` wrote: it has no {Path(error.filename).name}"
        ) from None
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} is no network that `hpo export` wrote, or is damaged: {error}") from None
    network = build_network(name, len(classes), weights, size, 0, seed=0).eval().requires_grad_(False)
    network.classes = tuple(classes)
    return network
