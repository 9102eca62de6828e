"""How many workers a machine takes, and how they share its GPUs. NVIDIA's programs are small scripts here, that do what
matters of theirs; the processes around them are real.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from hpo import cores
from hpo.cli.main import cli
from hpo.errors import InputError
from hpo.workers import gpu_sharing, machine, memory
from hpo.workers.launcher import LAUNCH_ID, Launch, worker_name
from hpo.workers.local import LocalLauncher
from hpo.workers.machine import how_many_workers, workers_that_fit

GIB = 1024
NVIDIA_SMI = """#!/bin/sh
case "$1" in *memory.free) echo 81000;; *) echo 0; echo 1;; esac
"""
MPS_CONTROL = """#!/bin/sh
case "$1" in
-f) touch "$CUDA_MPS_PIPE_DIRECTORY/control"; while [ ! -e "$CUDA_MPS_PIPE_DIRECTORY/quit" ]; do sleep 0.05; done;;
*) read -r word seconds; [ "$word" = quit ] && touch "$CUDA_MPS_PIPE_DIRECTORY/quit";;
esac
"""
WORKER = """
import json, os, signal, sys
names = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "HPO_GPU")
print(json.dumps({name: os.environ.get(name) for name in names}))
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
signal.pause()
"""


@pytest.mark.parametrize(
    ("cores", "memory", "gpus", "expected"),
    [
        (2, 24 * GIB, [], 2),
        (16, 12 * GIB, [], 4),
        (1, 1 * GIB, [], 1),
        (16, 128 * GIB, [80 * GIB], 4),
        (64, 512 * GIB, [80 * GIB] * 8, 32),
        (16, 128 * GIB, [16 * GIB], 2),
        (16, 128 * GIB, [4 * GIB, 4 * GIB], 2),
        (2, 128 * GIB, [80 * GIB], 2),
        (16, 6 * GIB, [80 * GIB], 2),
    ],
)
def test_as_many_workers_as_cores_gpus_and_memory_allow(
    cores: int, memory: int, gpus: list[int], expected: int
) -> None:
    assert workers_that_fit(cores, memory, gpus) == expected


def test_a_container_s_memory_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.available_mib()
    assert 100 < whole < 2**24
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = tmp_path / name
        monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "absent", limit))
        for text, expected in ((f"{90 * 2**20}\n", 90), ("max\n", None), (f"{2**60}\n", None)):
            limit.write_text(text)
            assert memory.available_mib() == (expected or pytest.approx(whole, rel=0.3))
            assert memory.total_mib() >= memory.available_mib()


def test_auto_is_understood_and_other_words_are_refused() -> None:
    assert how_many_workers(None) >= 1
    assert how_many_workers(2) == 2
    with pytest.raises(InputError, match="or auto"):
        how_many_workers(10_000)
    for wrong in (0, -1, 1.5, "2", "auto", True):
        with pytest.raises(InputError, match="nor auto"):
            how_many_workers(wrong)  # type: ignore[arg-type]
    for given in ("none", "0", "-1", "1.5"):
        result = CliRunner().invoke(cli, ["run", "study.toml", "--workers", given])
        assert result.exit_code == 2
        assert "--workers" in result.output


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of NVIDIA's programs: two GPUs, and MPS, which a worker can reach."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("nvidia-smi", NVIDIA_SMI), ("nvidia-cuda-mps-control", MPS_CONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_sharing, "PROBE", "")
    return programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int], LocalLauncher]]:
    """Starts workers that say what they were given."""
    launchers: list[LocalLauncher] = []

    def run(count: int) -> LocalLauncher:
        launchers.append(LocalLauncher([sys.executable, "-c", WORKER]))
        said: list[str] = []
        storage = "sqlite:///hpo.db"
        launch = Launch([], count, storage, tmp_path / "logs", lambda name, out_of_memory: True, said.append)
        launchers[-1].start(launch)
        return launchers[-1]

    yield run
    for launcher in launchers:
        launcher.stop()


def given_to(launcher: LocalLauncher, times: int = 1) -> list[dict[str, str | None]]:
    """What each worker said when it started for the n-th time."""
    deadline = time.monotonic() + 30
    while any(len(worker.log.read_text().splitlines()) < times for worker in launcher.workers):
        assert time.monotonic() < deadline
        launcher.tend()
        time.sleep(0.05)
    return [json.loads(worker.log.read_text().splitlines()[times - 1]) for worker in launcher.workers]


def daemons(folder: Path) -> list[int]:
    """Those whose pipes lie below the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("CUDA_MPS_PIPE_DIRECTORY", "").startswith(str(folder))
            if mine and process.pid != os.getpid():
                found.append(process.pid)
    return found


def test_workers_that_share_gpus_get_a_daemon_and_start_again_with_it_when_one_was_killed(
    nvidia: Path, start: Callable[[int], LocalLauncher], tmp_path: Path
) -> None:
    launcher = start(3)
    first = given_to(launcher)
    assert [given["CUDA_VISIBLE_DEVICES"] for given in first] == ["0", "1", "0"]
    (folder,) = {given["CUDA_MPS_PIPE_DIRECTORY"] for given in first}
    assert {given["HPO_GPU"] for given in first} == {"required"}

    killed, *others = launcher.workers
    assert killed.process is not None
    pids = [worker.process.pid for worker in others if worker.process]
    killed.process.kill()
    second = given_to(launcher, times=2)
    (anew,) = {given["CUDA_MPS_PIPE_DIRECTORY"] for given in second}
    assert anew != folder
    assert [given["CUDA_VISIBLE_DEVICES"] for given in second] == ["0", "1", "0"]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    launcher.stop()
    assert not list(tmp_path.glob("hpo-mps-*"))
    assert not daemons(tmp_path)


def test_workers_take_turns_where_the_daemon_does_not_come_back(
    nvidia: Path, start: Callable[[int], LocalLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    launcher = start(3)
    assert [given["CUDA_VISIBLE_DEVICES"] for given in given_to(launcher)] == ["0", "1", "0"]
    monkeypatch.setattr(gpu_sharing, "PROBE", "raise SystemExit(1)")
    assert launcher.workers[0].process is not None
    launcher.workers[0].process.kill()
    second = given_to(launcher, times=2)
    assert [given["CUDA_VISIBLE_DEVICES"] for given in second] == ["5", "7", "5"]
    assert {given["CUDA_MPS_PIPE_DIRECTORY"] for given in second} == {None} == {given["HPO_GPU"] for given in second}


def test_a_driver_that_hangs_is_said_and_a_hidden_gpu_is_none(nvidia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(machine, "NVIDIA_SMI_SECS", 0.2)
    with pytest.raises(InputError, match="nvidia-smi does not answer"):
        how_many_workers(None)
    for hidden in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2,-1,3")
    assert machine.visible_gpus() == ["0", "2"]


@pytest.mark.parametrize(
    "why", ["no program", "it does not start", "workers cannot reach it", "not wanted", "not needed"]
)
def test_without_a_daemon_workers_take_turns(
    why: str, nvidia: Path, start: Callable[[int], LocalLauncher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = nvidia / "nvidia-cuda-mps-control"
    if why == "no program":
        control.unlink()
    elif why == "it does not start":
        control.write_text("#!/bin/sh\nexit 1\n")
        monkeypatch.setattr(gpu_sharing, "START_SECS", 0.5)
    elif why == "workers cannot reach it":
        monkeypatch.setattr(gpu_sharing, "PROBE", "raise SystemExit(1)")
    elif why == "not wanted":
        monkeypatch.setenv("HPO_MPS", "0")
    launcher = start(2 if why == "not needed" else 4)
    given = given_to(launcher)
    assert [some["CUDA_VISIBLE_DEVICES"] for some in given] == ["0", "1", "0", "1"][: len(given)]
    assert {some["CUDA_MPS_PIPE_DIRECTORY"] for some in given} == {None}
    assert not list(tmp_path.glob("hpo-mps-*"))
    assert not daemons(tmp_path)


@pytest.mark.parametrize("hangs", [False, True])
def test_the_daemon_does_not_outlive_a_launcher_that_is_killed(hangs: bool, nvidia: Path, tmp_path: Path) -> None:
    if hangs:
        text = '#!/bin/sh\n[ "$1" = -f ] && touch "$CUDA_MPS_PIPE_DIRECTORY/control"\nexec sleep 1000\n'
        (nvidia / "nvidia-cuda-mps-control").write_text(text)
    code = """if True:
        from hpo.workers import gpu_sharing
        gpu_sharing.PROBE = ""
        print(gpu_sharing.start_mps(["0"], print).folder, flush=True)
        input()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        folder = Path(launcher.stdout.readline().strip())
        assert (folder / "control").exists()
        assert daemons(tmp_path)
        launcher.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 15
    while daemons(tmp_path) or folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_launches_from_one_folder_write_into_logs_of_their_own(start: Callable[[int], LocalLauncher]) -> None:
    first, second = start(2), start(2)
    given_to(first)
    given_to(second)
    logs = [worker.log.name for launcher in (first, second) for worker in launcher.workers]
    assert logs == [f"{socket.gethostname()}-{number}.log" for number in (1, 2, 3, 4)]
    first.stop()
    assert [worker.log.name for worker in start(2).workers] == logs[:2]


def test_workers_of_two_containers_that_share_host_name_and_pids_have_names_of_their_own(
    start: Callable[[int], LocalLauncher],
) -> None:
    first, second = start(1).workers[0], start(1).workers[0]
    assert first.environment[LAUNCH_ID] in first.name
    assert worker_name(7, first.environment[LAUNCH_ID]) != worker_name(7, second.environment[LAUNCH_ID])


@pytest.mark.parametrize(
    ("version_2", "version_1", "expected"),
    [
        ("200000 100000\n", None, 2),
        ("150000 100000\n", None, 2),
        ("max 100000\n", None, 16),
        (None, ("50000", "100000"), 1),
        (None, ("-1", "100000"), 16),
        (None, None, 16),
    ],
)
def test_a_containers_share_of_the_cores_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version_2: str | None,
    version_1: tuple[str, str] | None,
    expected: int,
) -> None:
    files = [tmp_path / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    for file, content in zip(files, (version_2, *(version_1 or (None, None))), strict=True):
        if content is not None:
            file.write_text(content)
    monkeypatch.setattr(cores, "CPU_QUOTA", files[0])
    monkeypatch.setattr(cores, "CPU_QUOTA_V1", tuple(files[1:]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert cores.cores() == expected
