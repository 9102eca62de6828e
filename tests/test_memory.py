"""Memory that does not suffice: said before the start, and told from other deaths when the kernel kills a worker."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.search import claim_next, give_parameter, open_fresh
from support.studies import make_spec
from support.waiting import write_waiting_study

from hpo.errors import InputError
from hpo.search.sql.counts import count
from hpo.search.sql.dead_workers import KILLED, give_back_trials_of
from hpo.search.sql.queries import all_trials
from hpo.search.sql.submitting import submit
from hpo.workers import machine, memory
from hpo.workers.machine import how_many_workers
from hpo.workers.memory import check_memory, max_mib, worker_mib

CGROUPS = Path("/sys/fs/cgroup/memory")
MIB = 2**20


def test_what_a_worker_takes_grows_with_batches_images_and_network() -> None:
    spec = make_spec()
    large = make_spec(model={"weights": "none", "input_size": 1000})
    deep = make_spec(model={"name": "resnet50", "weights": "none", "input_size": 1000})
    assert 1000 < worker_mib(spec, 16) < worker_mib(spec, 64) < 2000
    assert worker_mib(spec, 64) < worker_mib(large, 64) < worker_mib(deep, 64)
    vit = make_spec(model={"name": "vit_b_16", "weights": "none", "input_size": 32})
    assert worker_mib(vit, 16) > worker_mib(spec, 16) + 4000, "its weights alone, as often as a worker has them"
    assert max_mib(spec) < max_mib(large) == worker_mib(large, 64) > 20_000
    compared = spec.model_copy(update={"search": spec.search.model_copy(update={"consistency": 6.0})})
    assert worker_mib(compared, 32) == worker_mib(spec, 64), "each image has its twin"
    assert worker_mib(large, 512, images=48) == worker_mib(large, 48), "a batch holds no more than there are"


def test_what_cannot_fit_is_refused_and_what_may_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    spec = make_spec(model={"weights": "none", "input_size": 1000})  # batches of 16 to 64
    smallest, largest = worker_mib(spec, 16), worker_mib(spec, 64)
    monkeypatch.setattr(memory, "total_mib", lambda: smallest - 1)
    with pytest.raises(InputError, match=r"study 'study': a worker with batches of 16 at 1000 px takes about .* GiB"):
        check_memory(spec, None, 1, said.append)
    assert said == []
    monkeypatch.setattr(memory, "total_mib", lambda: largest - 1)
    check_memory(spec, None, 1, said.append)
    assert "a worker with batches of 64 at 1000 px may take about" in said.pop()
    monkeypatch.setattr(memory, "total_mib", lambda: 2 * largest - 1)
    check_memory(spec, None, 1, said.append)
    assert said == []
    check_memory(spec, None, 2, said.append)
    assert "2 workers with" in said[0]
    assert "fewer workers" in said[0]


def test_auto_takes_no_more_workers_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(model={"weights": "none", "input_size": 1000})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("hpo.workers.machine.cores", lambda: 8)
    monkeypatch.setattr("hpo.workers.machine.available_mib", lambda: 3 * worker_mib(spec, 64) + 1)
    assert how_many_workers(None, max_mib(spec)) == 3
    assert how_many_workers(None) == 8


def test_a_gpu_is_known_also_without_nvidias_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a GPU a batch that does not fit is split: nothing is refused for the memory beside it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "GPU_DEVICES", (str(tmp_path / "nvidiactl"),))
    assert not machine.may_have_gpu()
    (tmp_path / "nvidiactl").touch()
    assert machine.may_have_gpu()


@pytest.mark.parametrize("out_of_memory", [True, False])
def test_the_trial_of_a_worker_that_the_kernel_killed_tells_the_sampler_where_memory_ends(
    engine: sa.Engine, out_of_memory: bool
) -> None:
    study, _ = submit(engine, make_spec(budget=3))
    taken = [claim_next(engine, study, "worker") for _ in range(3)]
    for claim in taken[:2]:  # the third had not come to draw its parameters
        assert claim is not None
        give_parameter(engine, claim.hold)
    assert give_back_trials_of(engine, "worker", out_of_memory)
    counts = count(engine, study.study_id)
    if out_of_memory:
        assert (counts.complete, counts.failed, counts.waiting) == (1, 2, 2), "the baseline is tried again"
        (bad,) = [trial for trial in all_trials(engine, "study", "state = 'complete'") if not trial.baseline]
        assert (bad.score, bad.out_of_memory) == (0.0, KILLED)
    else:
        assert (counts.complete, counts.failed, counts.waiting) == (0, 3, 3)


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A control group whose processes may take 1,000 MiB."""
    group = CGROUPS / f"hpo-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1000 * MIB))
    except OSError:
        pytest.skip("needs root and control groups of version 1")
    yield group
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_run_goes_on_after_the_kernel_killed_a_worker_for_its_memory(
    little_memory: Path, tmp_path: Path, waiting: dict[str, str]
) -> None:
    study = write_waiting_study(tmp_path, budget=2, steps=1, choices=[1500, 1], default=1)
    command = [sys.executable, "-m", "hpo", "run", study, "--workers", "1"]
    ran = subprocess.run(
        ["sh", "-c", f'echo $$ > {little_memory}/cgroup.procs; exec "$@"', "sh", *command],
        cwd=tmp_path,
        env=os.environ | waiting,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr
    assert "worker 1 was killed, since memory ran out; it starts again in 1 s" in ran.stderr
    engine = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    bad = [trial for trial in all_trials(engine, "study", "state = 'complete'") if trial.out_of_memory]
    assert [trial.params["mib"] for trial in bad] == [1500]
