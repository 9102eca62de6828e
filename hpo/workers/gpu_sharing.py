"""How workers share a GPU: concurrently through an NVIDIA MPS daemon that the launcher starts, otherwise in turns.

The daemon waits on a pipe held by the launcher, as workers do, and so never outlives it. According to NVIDIA, killing a
client while its GPU computes leaves the daemon and its other clients in an undefined state, and all must be restarted;
the launcher does that. HPO_MPS=0 disables MPS.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
UNTIL_CLOSED = f"""
{CONTROL} -f &
read -r word
echo quit -t 2 | timeout -k 1 4 {CONTROL}
sleep 0.2
kill -9 $! 2> /dev/null
wait
rm -r "$CUDA_MPS_PIPE_DIRECTORY"
"""
"""Shell script that runs the daemon until its stdin, a pipe held open by the launcher, closes."""
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
"""
"""A worker's first CUDA calls, tried in advance since they fail silently if the daemon cannot be reached."""
START_SECS = 3.0
PROBE_SECS = 30.0
STOP_SECS = 10.0
Say = Callable[[str], None]


@dataclass
class Mps:
    """A running daemon and its folder. Its clients see the GPUs that it serves numbered from 0."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for its clients, except CUDA_VISIBLE_DEVICES."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.folder), "HPO_GPU": "required"}


def start_mps(gpus: Sequence[str], say: Say) -> Mps | None:
    """Starts a daemon for these GPUs.

    None if MPS is not installed, disabled or does not work, or if the environment names a running daemon, which workers
    then use.
    """
    unwanted = os.environ.get("HPO_MPS") == "0" or "CUDA_MPS_PIPE_DIRECTORY" in os.environ
    if unwanted or shutil.which(CONTROL) is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="hpo-mps-"))
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    process = subprocess.Popen(
        ["sh", "-c", UNTIL_CLOSED],  # noqa: S607
        env=os.environ | places | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    mps = Mps(folder, process)
    if _works(mps):
        return mps
    say(f"NVIDIA's MPS ({CONTROL}) does not work here: workers that share a GPU take turns")
    stop_mps(mps)
    return None


def _works(mps: Mps) -> bool:
    deadline = time.monotonic() + START_SECS
    while not (mps.folder / "control").exists():
        if mps.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    environment = os.environ | mps.environment | {"CUDA_VISIBLE_DEVICES": "0"}
    try:
        command = [sys.executable, "-c", PROBE]
        probe = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def stop_mps(mps: Mps) -> None:
    """Stops the daemon, by force if necessary, and removes its folder."""
    if mps.process.stdin:
        mps.process.stdin.close()
    try:
        mps.process.wait(timeout=STOP_SECS)
    except subprocess.TimeoutExpired:
        os.killpg(mps.process.pid, 9)
        mps.process.wait()
    shutil.rmtree(mps.folder, ignore_errors=True)
