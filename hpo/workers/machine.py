"""How many workers this machine can run, given its cores, memory and GPUs."""

import itertools
import os
import shutil
import subprocess

from hpo.cores import cores
from hpo.errors import InputError
from hpo.workers.memory import MIN_MIB_PER_WORKER, available_mib

MAX_WORKERS_PER_CORE = 4
WORKERS_PER_GPU = 4
"""On an H200, before CUDA graphs were used, 16 trials took 83 s with 1 worker, 42 s with 4, 48 s with 8."""
GPU_MIB_PER_WORKER = 6 * 1024
"""Covers CUDA, ResNet-18 at 64 px with batches of 512, and the images prepared at once, with a margin."""
NVIDIA_SMI_SECS = 20
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA's and AMD's drivers, and of WSL's."""


def how_many_workers(asked: int | None, mib_per_worker: int = MIN_MIB_PER_WORKER) -> int:
    """The number of workers asked for; if None, as many as this machine can run: one per core, or WORKERS_PER_GPU per
    GPU, limited by cores and memory.

    mib_per_worker: memory of a worker that computes on the CPU. Raises InputError as `check_workers`.
    """
    if asked is None:
        gpus = gpus_mib(visible_gpus())
        return workers_that_fit(cores(), available_mib(), gpus, MIN_MIB_PER_WORKER if gpus else mib_per_worker)
    check_workers(asked)
    return asked


def check_workers(asked: int | None) -> None:
    """Raises InputError if `asked` is neither None nor a whole number from 1 to MAX_WORKERS_PER_CORE per core."""
    if asked is None:
        return
    limit = MAX_WORKERS_PER_CORE * cores()
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"workers: {asked!r} is not a whole number from 1 to {limit}, nor auto (None in Python)")
    if asked > limit:
        raise InputError(
            f"--workers: {asked} is too many for {cores()} cores; at most {limit}, or auto: one a core, or "
            f"{WORKERS_PER_GPU} on each GPU"
        )


def workers_that_fit(cores: int, memory_mib: int, gpus_mib: list[int], mib_per_worker: int = MIN_MIB_PER_WORKER) -> int:
    """The number of workers that cores and memory allow. gpus_mib: free memory of each GPU; empty for the CPU."""
    wanted = sum(min(WORKERS_PER_GPU, max(1, mib // GPU_MIB_PER_WORKER)) for mib in gpus_mib) or cores
    return max(1, min(wanted, cores, memory_mib // mib_per_worker))


def visible_gpus() -> list[str]:
    """GPUs that workers may use, as named in CUDA_VISIBLE_DEVICES; empty without NVIDIA's driver."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        listed = (gpu.strip() for gpu in chosen.split(","))
        return list(
            itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), listed)
        )  # -1 hides all that follow
    return _nvidia_smi("index")


def may_have_gpu() -> bool:
    """Whether there is a GPU driver, also where nvidia-smi is missing (some containers) or the GPU is not NVIDIA's."""
    return any(map(os.path.exists, GPU_DEVICES))


def gpus_mib(gpus: list[str]) -> list[int]:
    """Free memory of each GPU in MiB; if the driver does not report it, what one worker needs."""
    free = _nvidia_smi("memory.free", f"--id={','.join(gpus)}") if gpus else []
    return [int(mib) if mib.isdigit() else GPU_MIB_PER_WORKER for mib in free] or [GPU_MIB_PER_WORKER] * len(gpus)


def _nvidia_smi(field: str, *options: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", *options]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_SECS)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"nvidia-smi does not answer within {NVIDIA_SMI_SECS} s: mend the driver, or set CUDA_VISIBLE_DEVICES= to "
            "do without a GPU"
        ) from None
    return listed.stdout.split() if listed.returncode == 0 else []
