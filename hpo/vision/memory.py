"""Reduces the number of images processed at once whenever memory runs out."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from hpo.errors import MachineError

SMALLEST_PORTION = 8
"""BatchNorm's statistics are those of a micro-batch, and with fewer images they are too noisy."""

T = TypeVar("T")


@dataclass
class Portions:
    """Numbers of images processed at once, reduced when memory runs out. The last digits of a training's results depend
    on them, so checkpoints include them.

    micro_batch: images per forward and backward pass; prepared: images augmented and passed through the frozen part.
    """

    micro_batch: int
    prepared: int

    def split_batch(self) -> None:
        """Halves `micro_batch`. Raises MemoryError at the smallest size."""
        self.micro_batch = _halved(self.micro_batch)

    def prepare_fewer(self) -> None:
        """Halves `prepared`. Raises MemoryError at the smallest size."""
        self.prepared = _halved(self.prepared)


def _halved(images: int) -> int:
    if images <= SMALLEST_PORTION:
        raise MemoryError(f"not even {images} images at once fit into memory")
    return max(SMALLEST_PORTION, -(-images // 2))


def fitting(operation: Callable[[], T], take_fewer: Callable[[], None]) -> T:
    """The operation's result; whenever it runs out of memory, calls `take_fewer` and tries again.

    Raises what `take_fewer` raises when it cannot reduce any further: MemoryError.
    """
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
"""Parts of the messages of the CPU's allocator, of cuBLAS and cuDNN, which allocate by themselves, and of CUDA."""
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
    """Whether the error or one of its causes means that memory ran out.

    PyTorch has an exception class for this on devices but not on the CPU, and a graph capture that runs out of memory
    ends with another error.
    """
    return any(
        isinstance(some, MemoryError | torch.OutOfMemoryError) or any(word in str(some) for word in OUT_OF_MEMORY)
        for some in _with_causes(error)
    )


def is_device_failure(error: BaseException | None) -> bool:
    """Whether the device failed for another reason than memory; this process can then no longer use it."""
    return not is_out_of_memory(error) and any(
        isinstance(some, RuntimeError) and any(word in str(some) for word in DEVICE_FAILED)
        for some in _with_causes(error)
    )


@contextlib.contextmanager
def device_errors(out_of_memory: type[Exception]) -> Iterator[None]:
    """Raises `out_of_memory` for that, MachineError where a device has failed otherwise."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or ["no more memory"])[0]
        if is_out_of_memory(error):
            raise out_of_memory(reason) from error
        if is_device_failure(error):
            raise MachineError(f"this machine's device failed: {reason}") from error
        raise


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
