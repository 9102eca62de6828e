"""How many images fit into memory at once: found out by running out of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

SMALLEST_PORTION = 8
"""BatchNorm's statistics are those of a micro-batch, and of fewer images they are worth little."""

T = TypeVar("T")


@dataclass
class Portions:
    """Images that are taken at once, fewer when memory was short. The last digits of a training depend on them, so they
    are kept with its checkpoints.

    micro_batch: of a batch, forward and backward; prepared: of an epoch, augmented and taken through the frozen part.
    """

    micro_batch: int
    prepared: int

    def split_batch(self) -> None:
        """Raises MemoryError if a micro-batch cannot be smaller."""
        self.micro_batch = _halved(self.micro_batch)

    def prepare_fewer(self) -> None:
        """Raises MemoryError if they cannot be fewer."""
        self.prepared = _halved(self.prepared)


def _halved(images: int) -> int:
    if images <= SMALLEST_PORTION:
        raise MemoryError(f"not even {images} images at once fit into memory")
    return max(SMALLEST_PORTION, -(-images // 2))


def fitting(operation: Callable[[], T], take_fewer: Callable[[], None]) -> T:
    """What the operation gives, tried again with fewer images at once as long as memory is short."""
    while True:
        try:
            return operation()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        take_fewer()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


OUT_OF_MEMORY = ("can't allocate memory", "STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDA out of memory")
"""What the CPU's allocator says, cuBLAS and cuDNN, which take memory of their own, and CUDA itself."""
DEVICE_FAILED = (
    "CUDA error",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "cuDNN error",
    "CUDA driver error",
    "NCCL error",
    "HIP error",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one that it came of, is that: PyTorch has a class of its own for devices, but none for the
    CPU, and a capture that runs out of memory ends with another error.
    """
    return any(
        isinstance(some, MemoryError | torch.OutOfMemoryError) or any(word in str(some) for word in OUT_OF_MEMORY)
        for some in _with_causes(error)
    )


def is_device_failure(error: BaseException | None) -> bool:
    """Whether the device failed otherwise: then this process can use it no more, whatever it computes."""
    return not is_out_of_memory(error) and any(
        isinstance(some, RuntimeError) and any(word in str(some) for word in DEVICE_FAILED)
        for some in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
