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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpo.cores import cores
from hpo.errors import InputError
from hpo.workers.gpu_sharing import Mps, start_mps, stop_mps
from hpo.workers.launcher import (
    LAUNCH_ID,
    STOP_SECS,
    WORKER_COMMAND,
    Launch,
    Launcher,
    arguments_of_worker,
    environment_of_worker,
    worker_name,
)
from hpo.workers.machine import how_many_workers, visible_gpus
from hpo.workers.memory import killed_for_memory
from hpo.workers.restarts import Death, Restarts


@dataclass
class LocalWorker:
    """A worker.

    stream: its log, open and locked against other launches; process: None while it waits for a restart; restart_at:
    monotonic seconds.
    """

    restarts: Restarts
    stream: IO[bytes]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0

    @property
    def name(self) -> str:
        """The worker's name in the database."""
        return worker_name(self.process.pid if self.process else 0, self.environment[LAUNCH_ID])

    @property
    def log(self) -> Path:
        return Path(self.stream.name)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_line(self) -> str:
        """The last line of its log, which is the reason if it ended with an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class LocalLauncher(Launcher):
    """Workers on this machine; see the module. GPUs are assigned round-robin, and shared through MPS if available."""

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        """command: what each worker runs, before its options and the names of its studies."""
        self.command = command
        self.workers: list[LocalWorker] = []
        self._gpus: Sequence[str] = ()
        self._mps: Mps | None = None

    def start(self, launch: Launch) -> None:
        self.launch = launch
        count = launch.workers or how_many_workers(None)
        streams = _open_logs(launch.logs, count)
        threads = max(1, cores() // count)
        environment = os.environ | environment_of_worker(launch.storage, threads, launch_id=secrets.token_hex(3))
        self.workers = [LocalWorker(Restarts(number), stream, environment) for number, stream in enumerate(streams, 1)]
        self._gpus = visible_gpus()
        self._mps = start_mps(self._gpus, launch.say) if 0 < len(self._gpus) < count else None
        self._kills_seen = killed_for_memory()
        for worker in self.workers:
            self._start_worker(worker)

    def tend(self) -> bool:
        for worker in self.workers:
            if worker.process is None:
                if time.monotonic() >= worker.restart_at:
                    self._start_worker(worker)
            elif code := worker.process.poll():
                self._plan_restart(worker, code)
        return any(worker.process is None or worker.process.returncode is None for worker in self.workers)

    def stop(self) -> None:
        _stop_workers(self.workers)
        if self._mps is not None:
            stop_mps(self._mps)
        for worker in self.workers:
            worker.stream.close()

    def _start_worker(self, worker: LocalWorker) -> None:
        worker.process = subprocess.Popen(
            [*self.command, *arguments_of_worker(self.launch)],
            env={**worker.environment, **self._share_of_gpus(worker)},
            stdin=subprocess.PIPE,
            stdout=worker.stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _share_of_gpus(self, worker: LocalWorker) -> dict[str, str]:
        if not self._gpus:
            return {}
        position = (worker.restarts.number - 1) % len(self._gpus)
        if self._mps is None:
            return {"CUDA_VISIBLE_DEVICES": self._gpus[position]}
        return {"CUDA_VISIBLE_DEVICES": str(position), **self._mps.environment}  # MPS numbers the GPUs from 0

    def _plan_restart(self, worker: LocalWorker, code: int) -> None:
        kills = killed_for_memory()
        out_of_memory = code == -signal.SIGKILL and kills > self._kills_seen
        self._kills_seen = kills
        death = Death(code, worker.last_line(), str(worker.log), out_of_memory)
        wait = worker.restarts.secs_until_next(death, self.launch.on_death(worker.name, out_of_memory))
        _forget(worker)
        worker.restart_at = time.monotonic() + wait
        self.launch.say(worker.restarts.told(death, wait))
        if self._mps is not None and code < 0:
            self._restart_mps(self._mps)

    def _restart_mps(self, mps: Mps) -> None:
        """Restarts MPS and its clients after a worker was killed, perhaps while its GPU computed."""
        self.launch.say("the other workers give back what they run and start again too, with the GPU that they shared")
        interrupted = [worker for worker in self.workers if worker.is_running()]
        _stop_workers(interrupted)
        stop_mps(mps)
        self._mps = start_mps(self._gpus, self.launch.say)
        for worker in interrupted:
            self._start_worker(worker)


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


def _forget(worker: LocalWorker) -> None:
    """Closes the pipe of a process that has ended."""
    if worker.process and worker.process.stdin:
        worker.process.stdin.close()
    worker.process = None


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
