"""Checkpoints and weights as bytes: safetensors, which hold numbers and text only, nothing that could run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hpo.vision.network import Classifier, Weights

HEADER_LENGTH_BYTES = 8  # little-endian; then the header, JSON (the safetensors format)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and text by name that says what they are."""

    tensors: dict[str, Tensor]
    header: dict[str, str]


def checkpoint_as_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Contiguous copies on the CPU: safetensors know no other layout."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(header))


def checkpoint_from_bytes(content: bytes) -> Checkpoint | None:
    """None if it is damaged: then an older one must do, or the beginning."""
    try:
        tensors = load(content)
        end = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        return Checkpoint(tensors, json.loads(content[HEADER_LENGTH_BYTES:end])["__metadata__"])
    except (SafetensorError, ValueError, KeyError):
        return None


def weights_as_bytes(network: Classifier) -> bytes:
    """The network's tensors under torchvision's own names."""
    return checkpoint_as_bytes(network.resnet.state_dict(), {})


def weights_from_bytes(content: bytes) -> Weights:
    """The tensors that `weights_as_bytes` wrote."""
    return load(content)
