"""Workers on a real Ray cluster, of several nodes on this machine: nodes that die and join, files that a node lacks,
and what is left when the launch ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from support.commands import Hpo, Start
from support.packages import install
from support.waiting import write_waiting_study

from hpo.errors import InputError
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.studies import find_studies
from hpo.workers.ray import RayLauncher
from hpo.workers.ray_actor import NeededFile, RayWorker

Condition = Callable[[], Any]
Submit = Callable[..., str]


def until(condition: Condition, secs: float = 60) -> None:
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes with room for a worker each, that find the objective `waiting`."""
    from ray.cluster_utils import Cluster

    code = (Path(__file__).parent / "support" / "waiting.py").read_text(encoding="utf-8")
    entry_points = "[hpo.objectives]\nwaiting = waiting:Waiting\n"
    package = install(tmp_path_factory.mktemp("ray") / "waiting", "waiting", code, entry_points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([package["PYTHONPATH"], str(Path(__file__).parent.parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            found.add_node(num_cpus=1)
            yield found
        finally:
            found.shutdown()


@pytest.fixture
def submit(postgresql_engine: sa.Engine, tmp_path: Path, hpo_here: Hpo, waiting: dict[str, str]) -> Submit:
    """Adds a study to the database; its URL."""

    def run(budget: int, steps: int) -> str:
        url = postgresql_engine.url.render_as_string(hide_password=False)
        study = write_waiting_study(tmp_path, budget, steps)
        assert hpo_here("submit", study, "--storage", url, **waiting).returncode == 0
        return url

    return run


def workers_of(node: Any) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    below = raylet.children(recursive=True)
    return [process for process in below if {"hpo", "worker"} <= set(process.cmdline())]


def lose(cluster: Any) -> None:
    """A node with all its processes, as when its power fails."""
    node = next(iter(cluster.worker_nodes))
    workers = workers_of(node)
    assert len(workers) == 1
    for process in [psutil.Process(node.all_processes["raylet"][0].process.pid), *workers]:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def counts(engine: sa.Engine) -> Counts:
    (study,) = find_studies(engine, ["study"])
    return count(engine, study.study_id)


def test_no_worker_survives_its_launch(
    cluster: Any, postgresql_engine: sa.Engine, submit: Submit, start: Start
) -> None:
    url = submit(budget=4, steps=1000)
    on_ray = ("--on", "ray", "--address", cluster.address, "--workers", "2", "--storage", url)
    for how in (signal.SIGTERM, signal.SIGKILL):
        launch = start("launch", "study", *on_ray)
        until(lambda: counts(postgresql_engine).running == 2)
        nodes = [cluster.head_node, *cluster.worker_nodes]
        workers = [worker for node in nodes for worker in workers_of(node)]
        assert len(workers) == 2
        launch.send_signal(how)
        launch.wait(30)
        until(lambda gone=workers: not any(worker.is_running() for worker in gone), 30)  # type: ignore[misc]
        assert counts(postgresql_engine).running == 0  # given back, not left to heartbeats
        assert counts(postgresql_engine).waiting == 2


def test_what_a_node_lacks_is_sent_to_it_and_checked(cluster: Any, tmp_path: Path) -> None:
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        launcher = RayLauncher()
        launcher._ray = ray
        node = ray.remote(RayWorker).options(max_concurrency=2).remote(str(tmp_path), str(tmp_path / "root"))

        def call(method: str, *arguments: Any) -> Any:
            return ray.get(getattr(node, method).remote(*arguments))

        weights, photos = tmp_path / "weights.safetensors", tmp_path / "photos"
        weights.write_bytes(os.urandom(100_000))
        (photos / "cats").mkdir(parents=True)
        (photos / "cats" / "1.png").write_bytes(b"png")
        content = weights.read_bytes()
        files = [NeededFile(str(weights), len(content)), NeededFile(str(photos), None)]
        assert call("lacks", files) == []
        sent = [launcher._sent(file) for file in files]
        weights.unlink()
        photos.rename(tmp_path / "elsewhere")
        assert call("lacks", files) == files
        for file, content_of_file in zip(files, sent, strict=True):
            call("take", file, content_of_file)
        assert call("lacks", files) == []
        assert (tmp_path / "root" / "weights.safetensors").read_bytes() == content
        assert zipfile.ZipFile(tmp_path / "root" / "photos").namelist() == ["cats/", "cats/1.png"]
        with pytest.raises(InputError, match=r"has another .*weights\.safetensors than"):
            call("take", NeededFile(str(weights), 7), sent[0])
        (tmp_path / "root" / "weights.safetensors").unlink()
        damaged = type(sent[0])(sent[0].chunks, sent[1].sha256)
        with pytest.raises(InputError, match="arrived damaged"):
            call("take", files[0], damaged)
        assert [path.name for path in (tmp_path / "root").glob("*weights*")] == ["weights.safetensors.lock"]
    finally:
        ray.shutdown()


def test_a_study_is_exact_when_a_node_dies_and_another_joins(
    cluster: Any, postgresql_engine: sa.Engine, submit: Submit, start: Start
) -> None:
    url = submit(budget=24, steps=10)
    address = ("--on", "ray", "--address", cluster.address, "--workers", "auto")
    launch = start("launch", "study", *address, "--storage", url)
    until(lambda: counts(postgresql_engine).running == 2 and counts(postgresql_engine).finished >= 2)
    lose(cluster)
    until(lambda: counts(postgresql_engine).failed == 1)
    cluster.add_node(num_cpus=1)
    until(lambda: counts(postgresql_engine).running == 2, 30)
    said, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0, said
    ended = counts(postgresql_engine)
    assert (ended.finished, ended.failed, ended.running, ended.waiting) == (24, 1, 0, 0)
    assert "was lost" in said
    assert url not in said


def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, hpo_here: Hpo, waiting: dict[str, str]) -> None:
    study = write_waiting_study(tmp_path, budget=1, steps=1)
    assert hpo_here("submit", study, **waiting).returncode == 0
    for arguments, expected in (
        (("--cpus-per-worker", "2"), "add --on ray"),
        (("--on", "ray", "--cpus-per-worker", "0"), "--cpus-per-worker"),
        (("--on", "ray", "--address", "127.0.0.1:1"), "no Ray cluster at 127.0.0.1:1"),
    ):
        ran = hpo_here("launch", "study", *arguments)
        assert ran.returncode == 2
        assert expected in ran.stderr
        assert "Traceback" not in ran.stderr


def test_without_an_address_ray_is_started_here_and_obeys_nobody_else(
    tmp_path: Path, hpo: Hpo, start: Start, waiting: dict[str, str]
) -> None:
    study = write_waiting_study(tmp_path, budget=1, steps=10_000)
    assert hpo("submit", study, **waiting).returncode == 0
    launch = start("launch", "study", "--on", "ray", "--workers", "1", **waiting)
    processes: list[psutil.Process] = []

    def is_running() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[:] = psutil.Process(launch.pid).children(recursive=True)
            return any({"hpo", "worker"} <= set(process.cmdline()) for process in processes)
        return False

    until(is_running)
    (gcs,) = (process for process in processes if process.name() == "gcs_server")
    (address,) = {f"127.0.0.1:{each.laddr.port}" for each in gcs.net_connections() if each.status == psutil.CONN_LISTEN}
    token = gcs.environ()["RAY_AUTH_TOKEN"]
    code = f"from ray._raylet import GcsClient; print(GcsClient(address='{address}').cluster_id)"

    def connect(token: str) -> None:
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=15)

    connect(token)
    with pytest.raises(subprocess.SubprocessError):  # refused, or asked again until the time is up
        connect("0" * 64)
    launch.terminate()
    said, _ = launch.communicate(timeout=60)
    assert "stopping: the workers release their trials" in said
