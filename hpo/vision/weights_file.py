"""The file that `model.weights` names, looked for without PyTorch: before images are downloaded and decoded in vain."""

from pathlib import Path

from hpo.errors import WeightsError
from hpo.spec import WEIGHTS_WITHOUT_FILE

SUFFIXES = (".safetensors", ".pth", ".pt")


def weights_file(weights: str) -> Path | None:
    """None if the weights are in no file of the user's. Raises WeightsError if the file is absent or out of reach."""
    if weights in WEIGHTS_WITHOUT_FILE:
        return None
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"model.weights: {weights} must be 'imagenet', 'none', or a .safetensors or .pth file")
    try:
        path.stat()
    except FileNotFoundError:
        raise WeightsError(f"model.weights: {path} does not exist") from None
    except OSError as error:
        raise WeightsError(f"model.weights: {path} cannot be read: {error.strerror}") from None
    return path
