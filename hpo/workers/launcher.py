"""The launcher's contract: start, tend and stop workers somewhere. Each launcher is a file of this folder."""

import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

LAUNCH_ID = "HPO_LAUNCH_ID"
"""Environment variable of a worker that distinguishes its name from those of other launches' workers."""

WORKER_COMMAND = (sys.executable, "-m", "hpo", "worker", "--supervised")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HPO_THREADS")
STOP_SECS = 10.0
"""What a worker has to give back its trial and end, before it is killed."""

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""By default, glibc returns large blocks to the system after every training step and requests them again, which takes
up to 7 % of a step. Both settings are needed; one alone makes it slower.
"""

OnDeath = Callable[[str, bool], bool]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Launch:
    """What a launcher is asked for.

    studies: names of those to work on, empty for all in the database; workers: how many, None for as many as there is
    room for; forever: whether workers wait for new studies instead of ending; storage: URL of the database, which may
    hold a password and must not show in a process list; logs: folder for one log per worker; on_death: to be called
    with the name of each worker that died and whether the kernel killed it because memory ran out; gives back its
    trial, and returns whether it had ever taken one; say: shows a line to the user; cluster: None to run them on this
    machine.
    """

    studies: Sequence[str]
    workers: int | None
    storage: str
    logs: Path
    on_death: OnDeath
    say: Say
    forever: bool = False
    cluster: "Cluster | None" = None


@dataclass(frozen=True)
class Cluster:
    """Where workers run if not here.

    address: None to start a cluster on this machine; cpus, gpus: what each worker asks for, gpus perhaps a share of
    one, None for a whole one where there are any; files: absolute paths of what workers read; data_root: folder for
    them on machines that lack them.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    files: Sequence[str] = ()
    data_root: str = "~/.cache/hpo"


class Launcher(ABC):
    """Runs the workers of one launch. The caller starts once, tends until that returns False, and always stops."""

    @abstractmethod
    def start(self, launch: Launch) -> None:
        """Starts the workers. Raises InputError if they cannot be started as asked; `stop` then cleans up."""

    @abstractmethod
    def tend(self) -> bool:
        """Checks all workers once, without waiting for them, and restarts those that died. Called about twice a second.
        Returns False when all have finished their work.

        Raises InputError if a worker rejects its input, WorkerError if one dies repeatedly without taking a trial.
        """

    @abstractmethod
    def stop(self) -> None:
        """Asks running workers to give back their trials and stop, and kills those that take too long. No worker is
        left afterwards. Idempotent, and allowed when `start` or `tend` has failed.
        """


def environment_of_worker(storage: str, threads: int, launch_id: str) -> dict[str, str]:
    """What a worker's process has in its environment beside what its machine has."""
    return {
        "HPO_STORAGE": storage,  # not an argument, which `ps` would show
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONUNBUFFERED": "1",
        LAUNCH_ID: launch_id,
        **ALLOCATOR,
    }


def arguments_of_worker(launch: Launch) -> list[str]:
    """What follows WORKER_COMMAND."""
    return [*(["--forever"] if launch.forever else []), "--", *launch.studies]


def launcher_named(name: str) -> Launcher:
    """A new launcher of the class in hpo/workers/<name>.py."""
    module = import_module(f"hpo.workers.{name}")
    return next(launcher() for launcher in Launcher.__subclasses__() if launcher.__module__ == module.__name__)


def worker_name(pid: int, launch_id: str = "") -> str:
    """A name that is unique among running workers. Host and pid alone are not, since containers may share both."""
    return f"{socket.gethostname()}:{pid}{f'-{launch_id}' if launch_id else ''}"
