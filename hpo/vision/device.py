"""The device of a process, and the precision that it computes in."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.deterministic


@dataclass(frozen=True)
class Compute:
    """device: where tensors live; bf16: whether the forward pass runs in bfloat16 (autocast)."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def description(self) -> str:
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{kind}, {'bf16' if self.bf16 else 'fp32'}"


def choose_compute(threads: int | None) -> Compute:
    """CUDA if there is one, else the CPU with so many threads; deterministic either way."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, which imports a compiler: a second
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging; 8 % of a step
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return Compute(torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False))
    return Compute(torch.device("cpu"), cpu_multiplies_bf16())


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 instructions; emulated, bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
