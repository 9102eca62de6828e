"""Workers as actors of a Ray cluster, each with the CPUs or the share of a GPU that it asks for.

This process tends them, as the local launcher does its processes: an actor that died, by itself or with its node, is
created again, and Ray places it where there is room, on nodes that come later too. Images and weights travel through
Ray's object store to nodes that lack them. The database stays the only truth: these workers share studies with those
that others have started.
"""

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpo.cores import cores
from hpo.errors import InputError
from hpo.workers.launcher import Cluster, Launch, Launcher, arguments_of_worker, environment_of_worker
from hpo.workers.ray_actor import NeededFile, RayWorker, SentFile
from hpo.workers.restarts import Death, Restarts

CHUNK_BYTES = 64 * 2**20
LOOK_SECS = 2.0
"""Between looks at the nodes of the cluster."""
CONNECT_SECS = 10.0
PLACING_SECS = 20.0
"""How long an actor may wait for room until the user is told."""
LEAVE_CHILDREN = {"RAY_kill_child_processes_on_worker_exit": "0"}
"""So that a worker whose actor has ended gives back its trial, instead of being killed with it."""
LOG = "`ray logs actor --id {}`, or Ray's dashboard"


@dataclass
class Tended:
    """A worker.

    actor: Ray's handle; its_end: of the process, (exit code, last line), from a thread that waits for it; name: in the
    database, "" until its process has started; restart_at: monotonic seconds, while it waits for a restart; asked_at:
    when Ray was asked for room, None once there is.
    """

    restarts: Restarts
    actor: Any = None
    its_end: "Future[tuple[int, str]] | None" = None
    name: str = ""
    restart_at: float = 0.0
    asked_at: float | None = None
    finished: bool = False


class RayLauncher(Launcher):
    """Workers on a Ray cluster; see the module."""

    def __init__(self) -> None:
        self.workers: list[Tended] = []
        self._ray: Any = None
        self._threads = ThreadPoolExecutor(max_workers=100_000, thread_name_prefix="waiting for a worker")
        self._looked_at = 0.0
        self._told_of_waiting = False

    def start(self, launch: Launch) -> None:
        self.launch, self.cluster = launch, launch.cluster or Cluster()
        self._launch_id = secrets.token_hex(3)
        self._ray = _connect(self.cluster.address)
        have_gpus = any(gpus for _, gpus in self._nodes())
        self._gpus = float(have_gpus) if self.cluster.gpus is None else self.cluster.gpus
        self._refuse_what_cannot_be()
        count = launch.workers if launch.workers is not None else max(1, self._room())
        self.workers = [Tended(Restarts(number)) for number in range(1, count + 1)]
        for worker in self.workers:
            self._start_worker(worker)

    def tend(self) -> bool:
        for worker in self.workers:
            if worker.its_end is not None and worker.its_end.done():
                self._see_to_end(worker, worker.its_end)
            elif worker.its_end is None and not worker.finished and time.monotonic() >= worker.restart_at:
                self._start_worker(worker)
        if time.monotonic() - self._looked_at > LOOK_SECS:
            self._looked_at = time.monotonic()
            self._use_new_nodes()
            self._tell_who_waits()
        return not all(worker.finished for worker in self.workers)

    def stop(self) -> None:
        if self._ray is None:
            return
        actors = [worker.actor for worker in self.workers if worker.actor is not None]
        ends = [actor.stop.remote() for actor in actors]
        with contextlib.suppress(Exception):  # of actors and clusters that are gone already
            self._ray.wait(ends, num_returns=len(ends), timeout=15)
        for actor in actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self.workers = []
        self._ray.shutdown()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_worker(self, worker: Tended) -> None:
        actor = self._ray.remote(RayWorker).options(
            num_cpus=self.cluster.cpus,
            num_gpus=self._gpus,
            max_concurrency=2,  # `stop` comes while `wait` waits
            runtime_env={"env_vars": LEAVE_CHILDREN},
            name=f"hpo worker {worker.restarts.number} {secrets.token_hex(3)}",
        )
        worker.name, worker.asked_at = "", time.monotonic()
        worker.actor = actor.remote(os.getcwd(), self.cluster.data_root)
        worker.its_end = self._threads.submit(self._follow, worker, worker.actor)

    def _follow(self, worker: Tended, actor: Any) -> tuple[int, str]:
        """From the actor's first to its last call; in a thread of its own."""
        lacking = self._ray.get(actor.lacks.remote(self._needed()))
        worker.asked_at = None
        for file in lacking:
            self.launch.say(f"{file} is sent to a node that lacks it")
            self._ray.get(actor.take.remote(file, self._sent(file)))
        threads = max(1, int(self.cluster.cpus))
        environment = _own_settings() | environment_of_worker(self.launch.storage, threads, self._launch_id)
        worker.name = self._ray.get(actor.start.remote(arguments_of_worker(self.launch), environment))
        code, last_line = self._ray.get(actor.wait.remote())
        return code, last_line

    def _see_to_end(self, worker: Tended, its_end: "Future[tuple[int, str]]") -> None:
        from ray.exceptions import RayError, RayTaskError

        log = LOG.format(worker.actor._actor_id.hex())
        is_at_fault = True
        try:
            code, last_line = its_end.result()
            death = Death(code, last_line, log)
        except RayError as error:
            if isinstance(cause := getattr(error, "cause", None), InputError):
                raise cause from None
            if "No module named 'hpo" in str(error):
                raise InputError(
                    "a node of the Ray cluster lacks hpo: install it on all nodes, in the version that is here"
                ) from None
            is_at_fault = isinstance(error, RayTaskError)  # otherwise its node or its actor was lost
            death = Death(None, _first_line(cause or error), log, out_of_memory="running low on memory" in str(error))
        worker.its_end = None
        if death.code == 0:
            worker.finished = True
            self._ray.kill(worker.actor)  # leaves its room to others
            return
        had_taken_a_trial = bool(worker.name) and self.launch.on_death(worker.name, death.out_of_memory)
        secs = worker.restarts.secs_until_next(death, had_taken_a_trial or not is_at_fault)
        worker.restart_at = time.monotonic() + secs
        with contextlib.suppress(Exception):
            self._ray.kill(worker.actor)
        self.launch.say(worker.restarts.told(death, secs))

    def _nodes(self) -> list[tuple[float, float]]:
        """CPUs and GPUs of each node."""
        resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in resources]

    def _room(self) -> int:
        """How many workers the nodes have room for, if nobody else uses them."""
        return sum(
            int(min(cpus / self.cluster.cpus, gpus / self._gpus if self._gpus else cpus / self.cluster.cpus))
            for cpus, gpus in self._nodes()
        )

    def _use_new_nodes(self) -> None:
        """Where the number of workers was left open, as many as there is room for; those of nodes that have left wait
        for their return.
        """
        if self.launch.workers is not None or any(worker.finished for worker in self.workers):
            return
        for number in range(len(self.workers) + 1, self._room() + 1):
            self.workers.append(Tended(Restarts(number)))
            self._start_worker(self.workers[-1])
            self.launch.say(f"worker {number} starts: the cluster has room for it")

    def _tell_who_waits(self) -> None:
        now = time.monotonic()
        waiting = [
            worker.restarts.number
            for worker in self.workers
            if worker.its_end is not None and worker.asked_at is not None and now - worker.asked_at > PLACING_SECS
        ]
        if waiting and not self._told_of_waiting:
            asked = f"{self.cluster.cpus:g} CPU{f' and {self._gpus:g} GPU' if self._gpus else ''}"
            who = f"worker {waiting[0]} waits" if len(waiting) == 1 else f"{len(waiting)} workers wait"
            self.launch.say(f"{who} for room on the Ray cluster; each asks for {asked}")
        self._told_of_waiting = bool(waiting)

    def _refuse_what_cannot_be(self) -> None:
        others = {node["NodeManagerHostname"] for node in self._ray.nodes() if node["Alive"]} - {socket.gethostname()}
        if others and self.launch.storage.startswith("sqlite"):
            raise InputError(
                f"the Ray cluster has other machines ({', '.join(sorted(others)[:3])}), which cannot share a SQLite "
                "database; use PostgreSQL: --storage postgresql://…"
            )

    def _needed(self) -> list[NeededFile]:
        return [NeededFile(path, None if os.path.isdir(path) else os.path.getsize(path)) for path in self.cluster.files]

    @cache  # noqa: B019  (a launcher lives as long as its process)
    def _sent(self, file: NeededFile) -> SentFile:
        """Puts a file into Ray's object store, once."""
        digest, chunks = hashlib.sha256(), []
        with _opened(Path(file.path)) as content:
            while chunk := content.read(CHUNK_BYTES):
                digest.update(chunk)
                chunks.append(self._ray.put(chunk))
        return SentFile(chunks, digest.hexdigest())


def _connect(address: str | None) -> Any:
    """Connects to a cluster, or starts one here, which only this launch can use, if there is no address. Raises
    InputError.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "hpo"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        options |= {"num_cpus": cores(), "include_dashboard": False}
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # Ray listens everywhere
    else:
        _refuse_silence(address)
    try:
        import ray  # reads the environment
    except ImportError:
        raise InputError("--on ray needs Ray: pip install 'ray[client]'") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address or "local", **options)
    except (Exception, SystemExit) as error:  # many kinds: no cluster there, another version of Ray or of Python
        raise InputError(f"--address: no Ray cluster at {address or 'this machine'}: {_first_line(error)}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own in their place
    return ray


def _refuse_silence(address: str) -> None:
    """Raises InputError if nothing listens at host:port, which Ray would try to reach for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECS).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--address: no Ray cluster at {address}: {_first_line(error)}") from None


def _own_settings() -> dict[str, str]:
    """HPO_… of this process, which the nodes' own environment would not have."""
    return {name: value for name, value in os.environ.items() if name.startswith("HPO_")}


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file, or a folder as a zip."""
    if not path.is_dir():
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w") as archive:
            for each in sorted(path.rglob("*")):
                archive.write(each, each.relative_to(path))
        packed.seek(0)
        yield packed
