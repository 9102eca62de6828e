"""The device that a process computes on, and its precision."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.utils.deterministic
from torch import Tensor

from hpo.cores import cores, cpu_multiplies_bf16
from hpo.errors import InputError

PIXELS_AT_ONCE = 4096 * 64 * 64
"""Pixels that a GPU augments and passes through the frozen part at once; it scores half as many at once."""
MAX_SCORED_AT_ONCE = 2000
SCORED_AT_ONCE_BY_A_CPU = 250
ATTACKED_AT_ONCE_BY_A_CPU = 64
MAX_PIXELS_SCORED_AT_ONCE_BY_A_CPU = 250 * 128 * 128
"""Each takes about 200 bytes of memory."""
MIN_SIZE_FOR_BF16_ON_A_CPU = 32
"""Below, in pixels, the features of a network's last units may be single pixels, where oneDNN's bf16 gradient of a 3x3
convolution leaves uninitialised memory in the taps that see only padding: no two trainings were equal.
"""


@dataclass(frozen=True)
class Compute:
    """device: where tensors live; bf16: whether the forward pass runs in bfloat16 (autocast)."""

    device: torch.device
    bf16: bool

    def autocast(self, cache_enabled: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=cache_enabled)

    @property
    def gains_from_winograd(self) -> bool:
        """Whether `WinogradConv2d` is faster than PyTorch's convolution: on a CPU in fp32, limited by arithmetic."""
        return self.device.type == "cpu" and not self.bf16

    def images_at_once(self, size: int, batch: int) -> int:
        """How many images with sides of `size` pixels to prepare at once: many on a GPU, where launching kernels is the
        bottleneck; on a CPU one batch, which fits its caches.
        """
        return max(1, PIXELS_AT_ONCE // size**2) if self.device.type == "cuda" else batch

    def images_scored_at_once(self, size: int) -> int:
        """As `images_at_once`, for images that are scored."""
        if self.device.type != "cuda":
            return max(1, min(SCORED_AT_ONCE_BY_A_CPU, MAX_PIXELS_SCORED_AT_ONCE_BY_A_CPU // size**2))
        return max(1, min(MAX_SCORED_AT_ONCE, PIXELS_AT_ONCE // 2 // size**2))

    def images_attacked_at_once(self, size: int) -> int:
        """As `images_scored_at_once`, for images whose gradients are needed."""
        scored = self.images_scored_at_once(size)
        return scored if self.device.type == "cuda" else min(ATTACKED_AT_ONCE_BY_A_CPU, scored)

    @property
    def batches_at_once_alone(self) -> int:
        """How many batches a worker may work on at once while the others on its machine wait, each in a thread."""
        return 1 if self.device.type == "cuda" else max(1, cores() // torch.get_num_threads())

    def mark(self) -> "torch.cuda.Event | float":
        """A point in the device's work, for `seconds_between`."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def description(self) -> str:
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{kind}, {'bf16' if self.bf16 else 'fp32'}"


def choose_compute(threads: int | None, input_size: int) -> Compute:
    """CUDA if available, otherwise the CPU; deterministic in both cases.

    threads: for the CPU, None for PyTorch's default; input_size: of the network, in pixels. Raises InputError if the
    launcher assigned a GPU to this process that PyTorch cannot use.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import a compiler: 1 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that takes 8 % of a step
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return Compute(torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False))
    if os.environ.get("HPO_GPU") == "required":
        raise InputError("PyTorch cannot use the GPU that this worker was given; HPO_MPS=0 does without NVIDIA's MPS")
    return Compute(torch.device("cpu"), cpu_multiplies_bf16() and input_size >= MIN_SIZE_FOR_BF16_ON_A_CPU)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """With so many CPU threads."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def seconds_between(first: "torch.cuda.Event | float", last: "torch.cuda.Event | float") -> float:
    """Seconds between two marks that the device has passed."""
    if isinstance(first, torch.cuda.Event) and isinstance(last, torch.cuda.Event):
        return cast(float, first.elapsed_time(last)) / 1000
    return cast(float, last) - cast(float, first)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in memory, copied to the device; the copy to a GPU is asynchronous."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
