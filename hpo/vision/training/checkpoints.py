"""Checkpoints and weights as bytes in the safetensors format, which contains only numbers and text, never code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hpo.doors.objective import Store
from hpo.errors import WeightsError
from hpo.study_file.images import BASELINE_WEIGHTS
from hpo.vision.classifier import Classifier, Weights

HEADER_LENGTH_BYTES = 8  # little-endian; then the header, JSON (the safetensors format)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and text by name that describes them."""

    tensors: dict[str, Tensor]
    header: dict[str, str]


def copied_aside(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Starts copying the tensors to memory, so that training can go on changing them.

    Copies from a GPU are asynchronous; the returned function waits for them, in any thread, and returns all copies.
    """
    copies = {
        name: tensor.detach().contiguous().to("cpu", non_blocking=True)
        if tensor.is_cuda
        else tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return lambda: copies
    copied = torch.cuda.Event()
    copied.record()

    def waited() -> dict[str, Tensor]:
        copied.synchronize()
        return copies

    return waited


def checkpoint_as_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """The tensors and the header as safetensors, which store contiguous tensors only."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(header))


def checkpoint_from_bytes(content: bytes) -> Checkpoint | None:
    """The checkpoint; None if it is damaged, in which case the caller uses an older one or starts over."""
    try:
        tensors = load(content)
        end = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        return Checkpoint(tensors, json.loads(content[HEADER_LENGTH_BYTES:end])["__metadata__"])
    except (SafetensorError, ValueError, KeyError):
        return None


def weights_as_bytes(network: Classifier) -> bytes:
    """The network's tensors under its own names, as safetensors."""
    return checkpoint_as_bytes(network.module.state_dict(), {})


def weights_from_bytes(content: bytes) -> Weights:
    """The tensors that `weights_as_bytes` wrote."""
    return load(content)


def baseline_weights(store: Store) -> Weights:
    """What the study's baseline learned. Raises WeightsError if it is not there, or diverged."""
    content = store.read(BASELINE_WEIGHTS)
    if content is None:
        raise WeightsError(
            f"{store.location}/{BASELINE_WEIGHTS} (what the baseline learned) cannot be found from this machine; set "
            "HPO_ARTIFACTS to a folder or bucket that all workers share"
        )
    weights = weights_from_bytes(content)
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise WeightsError(
            f"{store.location}/{BASELINE_WEIGHTS}: the baseline's training diverged, so nothing can start from it, be "
            "chosen against it or be mixed with it; submit the study anew with a lower default of search.learning_rate"
        )
    return weights
