"""The file that `model.weights` names, looked for without PyTorch: before images are downloaded and decoded in vain."""

from pathlib import Path

from hpo.errors import WeightsError

NO_FILES = ("imagenet", "none")
SUFFIXES = (".safetensors", ".pth", ".pt")


def weights_file(weights: str) -> Path | None:
    """None if the weights are in no file of the user's. Raises WeightsError if there is no such file."""
    if weights in NO_FILES:
        return None
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"model.weights: {weights} must be 'imagenet', 'none', or a .safetensors or .pth file")
    if not path.exists():
        raise WeightsError(f"model.weights: {path} does not exist")
    return path
