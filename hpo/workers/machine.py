"""How many workers this machine takes, by its cores, its memory and its GPUs."""

import itertools
import os
import shutil
import subprocess

from hpo.cores import cores
from hpo.errors import InputError
from hpo.workers.memory import LEAST_MIB_A_WORKER, available_mib

MOST_WORKERS_A_CORE = 4
WORKERS_A_GPU = 4
"""On an H200, before steps were replayed, sixteen trials took 83 s with one worker, 42 with four, 48 with eight."""
GPU_MIB_A_WORKER = 6 * 1024
"""CUDA itself, ResNet-18 at 64 px with batches of 512, and the images that are prepared at once, with room to spare."""
NVIDIA_SMI_SECS = 20
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of drivers by NVIDIA, AMD, and Windows below Linux."""


def how_many_workers(asked: int | None, mib_a_worker: int = LEAST_MIB_A_WORKER) -> int:
    """As many as asked for; with None as this machine takes: one a core, or WORKERS_A_GPU on each GPU, as far as cores
    and memory go, which on a CPU is `mib_a_worker` each. Raises InputError for what is no such number, and for so many
    that none would come to work.
    """
    if asked is None:
        gpus = gpus_mib(visible_gpus())
        return workers_that_fit(cores(), available_mib(), gpus, LEAST_MIB_A_WORKER if gpus else mib_a_worker)
    check_workers(asked)
    return asked


def check_workers(asked: int | None) -> None:
    """Raises InputError as `how_many_workers`, without a look at memory and GPUs."""
    if asked is None:
        return
    most = MOST_WORKERS_A_CORE * cores()
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"workers: {asked!r} is not a whole number from 1 to {most}, nor auto (None in Python)")
    if asked > most:
        raise InputError(
            f"--workers: {asked} is too many for {cores()} cores; at most {most}, or auto: one a core, or "
            f"{WORKERS_A_GPU} on each GPU"
        )


def workers_that_fit(cores: int, memory_mib: int, gpus_mib: list[int], mib_a_worker: int = LEAST_MIB_A_WORKER) -> int:
    """gpus_mib: the free memory of each GPU."""
    wanted = sum(min(WORKERS_A_GPU, max(1, mib // GPU_MIB_A_WORKER)) for mib in gpus_mib) or cores
    return max(1, min(wanted, cores, memory_mib // mib_a_worker))


def visible_gpus() -> list[str]:
    """The GPUs that workers may be dealt, as CUDA_VISIBLE_DEVICES names them; none without NVIDIA's driver."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        listed = (gpu.strip() for gpu in chosen.split(","))
        return list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), listed))  # -1 hides what follows
    return _nvidia_smi("index")


def may_have_gpu() -> bool:
    """Also where nvidia-smi is missing, as in some containers, or the GPU is another maker's."""
    return any(map(os.path.exists, GPU_DEVICES))


def gpus_mib(gpus: list[str]) -> list[int]:
    """The free memory of each; where the driver does not say, as much as one worker takes."""
    free = _nvidia_smi("memory.free", f"--id={','.join(gpus)}") if gpus else []
    return [int(mib) if mib.isdigit() else GPU_MIB_A_WORKER for mib in free] or [GPU_MIB_A_WORKER] * len(gpus)


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
