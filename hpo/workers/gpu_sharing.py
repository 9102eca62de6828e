"""How workers share a GPU: side by side, by a daemon of NVIDIA's MPS that is the launcher's own, else in turns.

The daemon lives behind a pipe, as workers do, and so does not outlive its launcher. NVIDIA says of a worker that is
killed while its GPU computes that the daemon and all its other workers may be left in any state, and are to be started
again; the launcher does so. HPO_MPS=0 does without.
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
"""Of the pipe, which the launcher holds open."""
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
"""
"""What a worker does first; as it fails without a word when it cannot reach the daemon, it is tried before."""
START_SECS = 3.0
PROBE_SECS = 30.0
STOP_SECS = 10.0
Say = Callable[[str], None]


@dataclass
class Mps:
    """A daemon and its folder. Its clients number the GPUs that it serves from 0."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Of its clients, but for the GPU that each gets."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.folder), "HPO_GPU": "required"}


def start_mps(gpus: Sequence[str], say: Say) -> Mps | None:
    """None where there is no such daemon or it does not work; and where there is one already, which workers find by
    themselves.
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
    """Ends it, whatever state it is in."""
    if mps.process.stdin:
        mps.process.stdin.close()
    try:
        mps.process.wait(timeout=STOP_SECS)
    except subprocess.TimeoutExpired:
        os.killpg(mps.process.pid, 9)
        mps.process.wait()
    shutil.rmtree(mps.folder, ignore_errors=True)
