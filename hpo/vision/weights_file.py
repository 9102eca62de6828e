"""The file that `model.weights` names, looked for without PyTorch: before images are downloaded and decoded in vain."""

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hpo.errors import WeightsError, nearest
from hpo.spec import WEIGHTS_WITHOUT_FILE

SUFFIXES = (".safetensors", ".pth", ".pt")


def weights_file(weights: str) -> Path | None:
    """None if the weights are in no file of the user's. Raises WeightsError if the file is absent, out of reach, or
    named .safetensors without being such a file.
    """
    if weights in WEIGHTS_WITHOUT_FILE:
        return None
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"model.weights: {weights} must be 'imagenet', 'none', or a .safetensors or .pth file."
            f"{nearest(path.name, WEIGHTS_WITHOUT_FILE)}"
        )
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            raise WeightsError(f"model.weights: {path} is a folder; give a .safetensors or .pth file")
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
    except FileNotFoundError:
        raise WeightsError(f"model.weights: {path} does not exist; give a .safetensors or .pth file") from None
    except OSError as error:
        raise WeightsError(f"model.weights: {path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise WeightsError(f"model.weights: {path} is no .safetensors file: {error}") from None
    return path


def digest(tensors: Mapping[str, bytes | memoryview]) -> str:
    """SHA-256 of the tensors' names and bytes (contiguous, little-endian), whatever file they came in."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name])
    return sha.hexdigest()
