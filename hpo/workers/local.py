"""Workers as supervised processes on this machine, each with a share of the cores or a GPU, and a log of its own.

Workers that die are restarted after growing waits; one that dies repeatedly without taking a trial ends the launch. No
worker outlives its supervisor: its stdin is a pipe that closes when the supervisor ends, even by SIGKILL.
"""

import itertools
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hpo.cores import cores
from hpo.errors import InputError, StorageError, WorkerError
from hpo.workers.gpu_sharing import Mps, start_mps, stop_mps
from hpo.workers.machine import visible_gpus
from hpo.workers.memory import killed_for_memory

STOP_SECS = 10.0
RESTART_SECS = (1, 2, 5, 10)
"""Wait before a restart, by how often in a row the worker died without having taken a trial. After the last one, the
launch is given up.
"""
FLEET = "HPO_FLEET"
"""Environment variable with the suffix of the workers' names."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""By default, glibc returns large blocks to the system after every training step and requests them again, which takes
up to 7 % of a step. Both settings are needed; one alone makes it slower.
"""

OnDeath = Callable[[str, bool], bool]
Say = Callable[[str], None]


@dataclass
class LocalWorker:
    """A worker.

    number: from 1; stream: its log, open and locked against other launches; process: None while it waits for a restart;
    restart_at: monotonic seconds; vain_starts: how often in a row it died without having taken a trial.
    """

    number: int
    stream: IO[bytes]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0
    vain_starts: int = 0

    @property
    def name(self) -> str:
        """The worker's name in the database."""
        return worker_name(self.process.pid if self.process else 0, self.environment[FLEET])

    @property
    def log(self) -> Path:
        return Path(self.stream.name)

    def last_line(self) -> str:
        """The last line of its log, which is the reason if it ended with an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass
class Fleet:
    """The workers of one supervisor.

    on_death: called with the name of a worker that died and whether the kernel killed it because memory ran out; gives
    back its trial, and returns whether it had ever taken one; gpus: assigned round-robin; mps: lets workers share a GPU
    concurrently, None if unavailable.
    """

    command: Sequence[str]
    workers: list[LocalWorker]
    on_death: OnDeath
    say: Say
    gpus: Sequence[str] = ()
    mps: Mps | None = None
    killed_for_memory: int = field(default_factory=killed_for_memory)
    """The kernel's count when the death of a worker was last noticed."""


def worker_name(pid: int, fleet: str = "") -> str:
    """A name that is unique among running workers. Host and pid alone are not, since containers may share both."""
    return f"{socket.gethostname()}:{pid}{f'-{fleet}' if fleet else ''}"


def start_fleet(
    command: Sequence[str],
    count: int,
    logs: Path,
    environment: Mapping[str, str],
    on_death: OnDeath,
    say: Say,
) -> Fleet:
    """Starts `count` workers with this command. Raises InputError if no log can be written in `logs`."""
    streams = _open_logs(logs, count)
    gpus = visible_gpus()
    mps = start_mps(gpus, say) if 0 < len(gpus) < count else None
    threads = max(1, cores() // count)
    fleet_id = secrets.token_hex(3)
    workers = []
    for number, stream in enumerate(streams, 1):
        share = (
            dict.fromkeys(THREAD_VARIABLES, str(threads))
            | {"HPO_THREADS": str(threads), "PYTHONUNBUFFERED": "1", FLEET: fleet_id}
            | ALLOCATOR
        )
        workers.append(LocalWorker(number, stream, os.environ | environment | share))
    fleet = Fleet(command, workers, on_death, say, gpus, mps)
    for worker in workers:
        _start(fleet, worker)
    return fleet


def _open_logs(folder: Path, count: int) -> list[IO[bytes]]:
    """One log per worker. Names contain the host, since the folder may be shared, and skip logs that other launches
    write. Raises InputError if the folder cannot be written.
    """
    opened: list[IO[bytes]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            stream = (folder / f"{socket.gethostname()}-{number}.log").open("ab")
            if _is_taken(stream):
                stream.close()
            else:
                opened.append(stream)
            if len(opened) == count:
                return opened
    except OSError as error:
        raise InputError(
            f"the logs' folder {folder} cannot be written: {error.strerror}; start in another folder, or set HPO_LOGS"
        ) from None
    raise AssertionError("unreachable")


def _is_taken(stream: IO[bytes]) -> bool:
    """Whether another launch has locked it, otherwise locks it; False where files cannot be locked."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _start(fleet: Fleet, worker: LocalWorker) -> None:
    worker.process = subprocess.Popen(
        fleet.command,
        env={**worker.environment, **_share_of_gpus(fleet, worker)},
        stdin=subprocess.PIPE,
        stdout=worker.stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _share_of_gpus(fleet: Fleet, worker: LocalWorker) -> dict[str, str]:
    if not fleet.gpus:
        return {}
    position = (worker.number - 1) % len(fleet.gpus)
    if fleet.mps is None:
        return {"CUDA_VISIBLE_DEVICES": fleet.gpus[position]}
    return {"CUDA_VISIBLE_DEVICES": str(position), **fleet.mps.environment}  # MPS numbers the GPUs from 0


def tend(fleet: Fleet) -> bool:
    """Checks all workers once and restarts those that died. Returns False when all have finished their work.

    Raises InputError if a worker rejects its input, WorkerError if one dies repeatedly without taking a trial.
    """
    for worker in fleet.workers:
        if worker.process is None:
            if time.monotonic() >= worker.restart_at:
                _start(fleet, worker)
        elif code := worker.process.poll():
            _plan_restart(fleet, worker, code)
    return any(worker.process is None or worker.process.returncode is None for worker in fleet.workers)


def _plan_restart(fleet: Fleet, worker: LocalWorker, code: int) -> None:
    kills = killed_for_memory()
    out_of_memory = code == -signal.SIGKILL and kills > fleet.killed_for_memory
    fleet.killed_for_memory = kills
    had_taken_a_trial = fleet.on_death(worker.name, out_of_memory)
    reason = worker.last_line().removeprefix("hpo: ")
    if code == InputError.exit_code:
        raise InputError(reason)
    if code == WorkerError.exit_code:
        raise WorkerError(reason)
    if out_of_memory:
        how = "was killed by the kernel, since memory ran out"
    else:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}: {reason}"
    if had_taken_a_trial:
        worker.vain_starts = 0
    elif code != StorageError.exit_code:  # an unreachable database is not the worker's fault
        worker.vain_starts += 1
    if worker.vain_starts == len(RESTART_SECS):
        raise WorkerError(
            f"worker {worker.number} cannot start: {worker.vain_starts} times in a row it {how} (its log: {worker.log})"
        )
    wait = RESTART_SECS[worker.vain_starts]
    _forget(worker)
    worker.restart_at = time.monotonic() + wait
    fleet.say(f"worker {worker.number} {how}; it starts again in {wait:g} s (its log: {worker.log})")
    if fleet.mps is not None and code < 0:
        _share_anew(fleet, fleet.mps)


def _share_anew(fleet: Fleet, mps: Mps) -> None:
    """Restarts MPS and its clients after a worker was killed, perhaps while its GPU computed."""
    fleet.say("the other workers give back what they run and start again too, with the GPU that they shared")
    interrupted = [worker for worker in fleet.workers if worker.process and worker.process.poll() is None]
    _stop_workers(interrupted)
    stop_mps(mps)
    fleet.mps = start_mps(fleet.gpus, fleet.say)
    for worker in interrupted:
        _start(fleet, worker)


def _forget(worker: LocalWorker) -> None:
    """Closes the pipe of a process that has ended."""
    if worker.process and worker.process.stdin:
        worker.process.stdin.close()
    worker.process = None


def stop_fleet(fleet: Fleet) -> None:
    """Asks running workers to stop, kills those that have not after STOP_SECS, and closes the logs."""
    _stop_workers(fleet.workers)
    if fleet.mps is not None:
        stop_mps(fleet.mps)
    for worker in fleet.workers:
        worker.stream.close()


def _stop_workers(workers: Sequence[LocalWorker]) -> None:
    running = [worker.process for worker in workers if worker.process and worker.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECS
    for process in running:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for worker in workers:
        _forget(worker)
