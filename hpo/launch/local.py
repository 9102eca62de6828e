"""Workers as processes of this machine, each with its share of the cores and a log file of its own."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STOP_SECS = 10


@dataclass(frozen=True)
class WorkerProcess:
    """A worker that was started, and where it writes what it does."""

    process: subprocess.Popen[bytes]
    log: Path

    def last_line(self) -> str:
        """What the worker said last: the reason, when it ended with an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def start_workers(study: str, storage: str, count: int, logs: Path) -> list[WorkerProcess]:
    """Starts `count` workers for one study. The storage URL goes through the environment, where `ps` does not show
    it.
    """
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // count) if hasattr(os, "sched_getaffinity") else 1
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | limits | {"HPO_STORAGE": storage, "PYTHONUNBUFFERED": "1"}
    started = []
    for number in range(1, count + 1):
        log = logs / f"worker-{number}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpo", "worker", "--threads", str(threads), "--", study],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(WorkerProcess(process, log))
    return started


def stop_workers(workers: list[WorkerProcess]) -> None:
    """Asks those still running to stop, and waits; after STOP_SECS they are killed."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        try:
            worker.process.wait(timeout=STOP_SECS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
