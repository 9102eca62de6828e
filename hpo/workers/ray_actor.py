"""What runs on a node of a Ray cluster: an actor that keeps one worker's process, and files that the node lacks.

The process is that of every launcher, `hpo worker --supervised`: when the actor ends, however it ends, the pipe to the
process closes, and the worker gives back its trial and ends.
"""

import hashlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hpo.errors import InputError
from hpo.workers.launcher import LAUNCH_ID, STOP_SECS, WORKER_COMMAND, worker_name


@dataclass(frozen=True)
class NeededFile:
    """A file that workers need.

    path: as the study names it; size: in bytes, None for a folder, which travels as a zip.
    """

    path: str
    size: int | None

    def __str__(self) -> str:
        return self.path

    def is_at(self, path: Path) -> bool:
        return os.path.exists(path) and (self.size is None or os.path.getsize(path) == self.size)


@dataclass(frozen=True)
class SentFile:
    """Its content. chunks: references to bytes in Ray's object store; sha256: of them all."""

    chunks: Sequence[Any]
    sha256: str


class RayWorker:
    """An actor. Its methods are called one after the other, but for `stop`, which may come at any time."""

    def __init__(self, folder: str, data_root: str) -> None:
        """folder: where the launch was started; the worker starts there too if this machine has it. data_root: where to
        keep what is sent, if HPO_DATA_ROOT does not say so.
        """
        self.folder = folder if os.path.isdir(folder) else None
        self.data_root = Path(os.environ.get("HPO_DATA_ROOT") or data_root).expanduser()
        self.process: subprocess.Popen[str] | None = None

    def lacks(self, files: Sequence[NeededFile]) -> list[NeededFile]:
        """Which of the files are neither where the study says nor in the data root."""
        return [file for file in files if not (os.path.exists(file.path) or file.is_at(self._target(file)))]

    def take(self, file: NeededFile, sent: SentFile) -> None:
        """Writes a file into the data root, where workers look for what is not where the study says. Raises InputError
        if another one of this name is there, or if it cannot be written.
        """
        import ray

        target = self._target(file)
        try:
            self.data_root.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if file.is_at(target):
                    return
                if target.exists():
                    raise InputError(
                        f"{socket.gethostname()} has another {target} than {file} is here; remove or rename it there"
                    )
                digest = hashlib.sha256()
                with tempfile.NamedTemporaryFile(dir=self.data_root, prefix=f".{target.name}-", delete=False) as part:
                    for chunk in sent.chunks:
                        content = ray.get(chunk)
                        digest.update(content)
                        part.write(content)
                if digest.hexdigest() != sent.sha256:
                    os.unlink(part.name)
                    raise InputError(f"{file} arrived damaged on {socket.gethostname()}; launch again")
                os.chmod(part.name, 0o644)
                os.rename(part.name, target)
        except OSError as error:
            raise InputError(
                f"{file} cannot be kept on {socket.gethostname()}: {target}: {error.strerror}; set HPO_DATA_ROOT"
            ) from None

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
        """Starts the worker's process; its name in the database."""
        self.process = subprocess.Popen(
            [*WORKER_COMMAND, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment, "HPO_DATA_ROOT": str(self.data_root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ray must not kill it with the actor: it gives back its trial first
        )
        return worker_name(self.process.pid, environment[LAUNCH_ID])

    def wait(self) -> tuple[int, str]:
        """Passes on what the process says to Ray's log until it ends; its exit code and last line."""
        last_line = "it said nothing"
        for line in self._running.stdout or ():
            print(line, end="", flush=True)  # noqa: T201
            last_line = line.strip() or last_line
        return self._running.wait(), last_line

    def stop(self) -> None:
        """Ends the process, which has STOP_SECS to give back its trial."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_SECS)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self.process is not None, "start() comes before"  # noqa: S101
        return self.process

    def _target(self, file: NeededFile) -> Path:
        return self.data_root / Path(file.path).name
