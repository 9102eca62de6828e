"""Memory: how much this machine has, an estimate of what a worker needs, and how often the kernel killed a process."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from hpo.cores import cpu_multiplies_bf16
from hpo.doors.network import family_of
from hpo.errors import InputError
from hpo.study_file.images import ImageSpec
from hpo.study_file.perturbations import against

CGROUP_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Memory limits of control groups, versions 2 and 1."""
KERNEL_COUNTS = Path("/proc/vmstat")
MIN_MIB_PER_WORKER = 3 * 1024
"""Minimum for a worker, with a margin; also the host memory of one that computes on a GPU."""
BASE_MIB = 1200
"""PyTorch; 12 million weights with gradients, momentum and averages; a checkpoint being written."""
MILLIONS_IN_BASE = 12
MIB_PER_MILLION = 60
"""Of further weights: fifteen times themselves, measured with ViT-B/16 and AdamW (benchmarks/LOG.md)."""
BYTES_PER_PIXEL = 1950
"""Memory of an fp32 training step per pixel of a batch, for networks of which it is not known: a ResNet-50's."""
SHARE_IN_BF16 = 2 / 3
"""Of the memory that a step takes in fp32."""


def available_mib() -> int:
    """Memory available now, in MiB, at most the container's limit."""
    return _limited(_meminfo("MemAvailable"))


def total_mib() -> int:
    """Memory of this machine in MiB, at most the container's limit."""
    return _limited(_meminfo("MemTotal"))


def _meminfo(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) // 2**10 for line in lines if line.startswith(f"{key}:"))
    except (OSError, ValueError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def _limited(mib: int) -> int:
    for file in CGROUP_LIMITS:
        try:
            return min(mib, int(file.read_text(encoding="ascii")) // 2**20)
        except (OSError, ValueError):  # no container, "max"
            continue
    return mib


def killed_for_memory() -> int:
    """Number of processes the kernel has killed since boot because memory ran out; 0 if it does not report it."""
    try:
        lines = KERNEL_COUNTS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, StopIteration):
        return 0


def worker_mib(spec: ImageSpec, batch_size: int, images: int | None = None) -> int:
    """Estimated memory in MiB of a worker that computes on the CPU. images: number of training images, if known."""
    millions, bytes_per_pixel = _size_of(spec.model.name)
    step = bytes_per_pixel * (SHARE_IN_BF16 if cpu_multiplies_bf16() else 1)
    weights = MIB_PER_MILLION * max(0, millions - MILLIONS_IN_BASE)
    batch = batch_size if images is None else min(batch_size, images)
    versions = 2 if any(spec.search.values("consistency")) or "split" in spec.search.values("batch_norm") else 1
    adversarial = 3 * (images or 0) * len(against("baseline", spec.training_perturbations))  # bytes a pixel
    return round(BASE_MIB + weights + (step * versions * batch + adversarial) * spec.model.input_size**2 / 2**20)


def _size_of(network: str) -> tuple[int, int]:
    """Millions of weights, and bytes a pixel."""
    with contextlib.suppress(InputError):
        family = family_of(network)
        return family.million_weights.get(network, 0), family.bytes_per_pixel.get(network, BYTES_PER_PIXEL)
    return 0, BYTES_PER_PIXEL


def max_mib(spec: ImageSpec, images: int | None = None) -> int:
    """Memory in MiB that a worker on the CPU needs for any trial of the study."""
    return max(MIN_MIB_PER_WORKER, worker_mib(spec, max(_batch_sizes(spec)), images))


def check_memory(spec: ImageSpec, images: int | None, workers: int, say: Callable[[str], None]) -> None:
    """Raises InputError if this machine lacks the memory for one worker on the CPU with the study's smallest batches;
    warns through `say` if it may lack it for all workers with the largest.
    """
    total = total_mib()
    smallest, largest = min(_batch_sizes(spec)), max(_batch_sizes(spec))
    if (needed := worker_mib(spec, smallest, images)) > total:
        raise InputError(
            f"study '{spec.name}': a worker with batches of {smallest} at {spec.model.input_size} px takes about "
            f"{_gib(needed)} of memory, and this machine has {_gib(total)}; lower model.input_size or "
            "search.batch_size"
        )
    if (needed := workers * worker_mib(spec, largest, images)) > total:
        who, instead = ("a worker", "") if workers == 1 else (f"{workers} workers", "fewer workers (--workers), ")
        say(
            f"study {spec.name}: {who} with batches of {largest} at {spec.model.input_size} px may take about "
            f"{_gib(needed)} of memory, and this machine has {_gib(total)}; a trial that the kernel kills for it "
            f"gets the worst score. Less is taken by {instead}a lower model.input_size or search.batch_size"
        )


def _batch_sizes(spec: ImageSpec) -> list[int]:
    return [int(value) for value in spec.search.values("batch_size")]


def _gib(mib: int) -> str:
    return f"{mib / 1024:,.1f} GiB"
