"""Workers that are really killed, frozen and cut off, on both databases: exactly the budget is done. Larger runs, and
every kind of fault in one: benchmarks/faults.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from faults import HERE, Plan, examine, make_spec, run_with_faults
from postgresql_servers import fresh_database, postgresql
from sqlalchemy.exc import DBAPIError
from support.search import claim_next, optuna_storage, run
from support.waiting import write_waiting_study

from hpo.search.sql import claims, storage
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.outages import is_outage
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trials
from hpo.search.sql.url import parse_url

QUICK = {"EPOCH_SECS": "0.2", "HEARTBEAT_SECS": "0.3", "GRACE_SECS": "1.5"}
StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(postgresql_url: str) -> Iterator[StartWorker]:
    """Starts workers whose objective costs nothing; what is left of them is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*studies: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "free_worker.py"), *studies],
                env=os.environ | {"HPO_STORAGE": postgresql_url} | QUICK | environment,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], Any], secs: float = 30) -> None:
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_workers_killed_at_random_and_at_chosen_points_finish_exactly_the_budget(
    storage_url: str, tmp_path: Path
) -> None:
    plan = Plan(budget=30, workers=4, kills=8, heartbeat_secs=0.3, grace_secs=1.5, pruner="asha")
    found = run_with_faults(storage_url, plan, tmp_path)
    assert found["wrong"] == []
    assert found["kills"] == plan.kills
    assert found["tracebacks"] == 0
    assert found["other deaths"] == []
    study = optuna.load_study(study_name="faults", storage=optuna_storage(storage_url))
    study.tell(study.ask(), 0.5)  # a plain Optuna script goes on where hpo ended


def test_no_more_trials_run_at_once_than_allowed_whoever_is_killed(tmp_path: Path) -> None:
    plan = Plan(budget=10, workers=4, kills=3, heartbeat_secs=0.3, grace_secs=1.5, pruner="asha", max_parallel=2)
    found = run_with_faults(f"sqlite:///{tmp_path}/hpo.db", plan, tmp_path)
    assert found["wrong"] == []
    assert found["other deaths"] == []


def test_a_server_that_is_stopped_and_started_again_loses_nothing(tmp_path: Path) -> None:
    plan = Plan(budget=16, workers=3, kills=3, outages=1, outage_secs=3, heartbeat_secs=0.3, grace_secs=1.5)
    with postgresql() as server:
        found = run_with_faults(fresh_database(server.get_uri()), plan, tmp_path, server)
    assert found["wrong"] == []
    assert found["tracebacks"] == 0
    assert found["other deaths"] == []
    logs = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert "the database is away, waiting for it" in logs
    assert "the database is back" in logs


def test_a_frozen_worker_loses_its_trial_and_lives_on(
    postgresql_url: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    engine = create_database(parse_url(postgresql_url))
    study, _ = submit(engine, make_spec(Plan(budget=12)))
    frozen = start_worker(study.name, log=tmp_path / "frozen.log", EPOCH_SECS="1")
    wait_until(lambda: count(engine, study.study_id).running == 1)
    frozen.send_signal(signal.SIGSTOP)
    other = start_worker(study.name, log=tmp_path / "other.log")
    wait_until(lambda: count(engine, study.study_id).failed == 1)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(timeout=30) == 0
    assert other.wait(timeout=30) == 0
    said = (tmp_path / "frozen.log").read_text()
    assert "trial dropped: another worker has taken it over" in said
    assert said.count(" complete at epoch 3") > 0, "it went on"
    assert "Traceback" not in said
    assert examine(engine, study, Plan(budget=12))["wrong"] == []
    engine.dispose()


def test_a_worker_that_is_frozen_in_a_transaction_blocks_nobody(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "IDLE_IN_TRANSACTION_SECS", 1)
    engine = create_database(parse_url(postgresql_url))
    study, _ = submit(engine, make_spec(Plan(budget=2)))
    claim = claim_next(engine, study, "frozen")
    assert claim is not None
    transaction = storage.writing(engine)
    frozen = transaction.__enter__()
    frozen.execute(trials.update().where(trials.c.trial_id == claim.hold.trial_id).values(state="RUNNING"))
    assert claims.give_back(engine, claim.hold, "stopped", "its worker was lost")
    with pytest.raises(DBAPIError) as lost:
        frozen.execute(trials.select())
    assert is_outage(lost.value)
    frozen.close()
    engine.dispose()


def test_no_statement_is_sent_in_a_pipeline(engine: sa.Engine) -> None:
    """PostgreSQL takes a worker that is frozen in one for active, and never ends its transaction."""
    many: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: many.append(given[2]) if given[5] else None)
    run(engine, make_spec(Plan(budget=9, pruner="asha")))
    assert many == []


def test_eight_workers_on_sqlite_meet_no_locked_database(tmp_path: Path) -> None:
    plan = Plan(budget=60, workers=8, kills=0, epoch_secs=0, grace_secs=60)  # a busy machine delays heartbeats
    found = run_with_faults(f"sqlite:///{tmp_path}/hpo.db", plan, tmp_path)
    assert found["wrong"] == []
    assert found["tracebacks"] == 0
    assert found["states"] == {"COMPLETE": 60}
    logs = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert all(line.startswith("trial ") for line in logs.splitlines())


def test_stop_resume_and_extend_are_obeyed_by_workers_elsewhere(
    postgresql_url: str, tmp_path: Path, start_worker: StartWorker, hpo_here: Callable[..., Any]
) -> None:
    engine = create_database(parse_url(postgresql_url))
    study, _ = submit(engine, make_spec(Plan(budget=4)))
    workers = [start_worker(study.name, log=tmp_path / "log", EPOCH_SECS="30") for _ in range(2)]
    wait_until(lambda: count(engine, study.study_id).running == 2)
    said = hpo_here("stop", study.name, HPO_STORAGE=postgresql_url)
    assert "study faults is stopped; its running trials (2) are released within 10 s" in said.stderr
    assert [worker.wait(timeout=3) for worker in workers] == [0, 0], "within heartbeats of 0.3 s"
    assert count(engine, study.study_id) == Counts(failed=2, waiting=2)
    assert "study faults is stopped: requested by `hpo stop`" in (tmp_path / "log").read_text()
    assert "`hpo resume faults` continues it" in hpo_here("status", study.name, HPO_STORAGE=postgresql_url).stdout
    assert start_worker(study.name, log=tmp_path / "log").wait(timeout=10) == 0, "nothing to do"
    hpo_here("resume", study.name, HPO_STORAGE=postgresql_url)
    assert start_worker(study.name, log=tmp_path / "log").wait(timeout=30) == 0
    assert count(engine, study.study_id) == Counts(complete=4, failed=2)
    assert "has used up its budget of 4" in hpo_here("stop", study.name, HPO_STORAGE=postgresql_url).stderr
    refused = hpo_here("extend", study.name, "--budget", "3", HPO_STORAGE=postgresql_url)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "2 trials added" in hpo_here("extend", study.name, "--budget", "6", HPO_STORAGE=postgresql_url).stderr
    assert start_worker(study.name, log=tmp_path / "log").wait(timeout=30) == 0
    assert examine(engine, study, Plan(budget=6))["wrong"] == []
    engine.dispose()


TOMORROW = """
import datetime, os, runpy, sys, time

class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(days=1)

now = time.time
time.time = lambda: now() + 86400
datetime.datetime = Tomorrow
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_worker_whose_clock_is_wrong_writes_the_databases_times(storage_url: str) -> None:
    engine = create_database(parse_url(storage_url))
    study, _ = submit(engine, make_spec(Plan(budget=2)))
    command = [sys.executable, "-c", TOMORROW, str(HERE / "free_worker.py"), study.name]
    environment = os.environ | {"HPO_STORAGE": storage_url} | QUICK
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as worker:
        assert worker.wait(timeout=60) == 0
    with engine.connect() as connection:
        rows = connection.execute(sa.select(trials.c.datetime_start, trials.c.datetime_complete)).all()
    assert len(rows) == 2
    for began, ended in rows:
        now = datetime.now(UTC).replace(tzinfo=None)
        assert now - timedelta(minutes=5) < began < ended < now + timedelta(seconds=5)
    engine.dispose()


def test_a_scheduler_is_told_by_a_code_of_its_own_that_a_worker_was_stopped(
    postgresql_url: str, hpo_here: Callable[..., Any], start: Any, tmp_path: Path, waiting: dict[str, str]
) -> None:
    """Slurm and Kubernetes take 0 for done."""
    environment = {"HPO_STORAGE": postgresql_url, **waiting}
    hpo_here("submit", write_waiting_study(tmp_path, budget=4, steps=600), **environment)
    for option, code in ((["--exit-code-when-stopped", "75"], 75), ([], 0)):
        worker = start("worker", "--forever", *option, **environment)
        engine = storage.open_engine(parse_url(postgresql_url))
        wait_until(lambda engine=engine: count(engine, 1).running == 1)  # type: ignore[misc]
        engine.dispose()
        worker.terminate()
        assert worker.wait(timeout=10) == code
    refused = hpo_here("worker", "--exit-code-when-stopped", "256", HPO_STORAGE=postgresql_url)
    assert refused.returncode == 2


def test_sigterm_ends_a_worker_while_the_database_is_away(tmp_path: Path) -> None:
    with postgresql() as server:
        url = fresh_database(server.get_uri())
        engine = create_database(parse_url(url))
        study, _ = submit(engine, make_spec(Plan(budget=2)))
        environment = os.environ | {"HPO_STORAGE": url} | QUICK | {"EPOCH_SECS": "30"}
        command = [sys.executable, str(HERE / "free_worker.py"), study.name]
        worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        wait_until(lambda: count(engine, study.study_id).running == 1)
        engine.dispose()
        server.stop()
        worker.terminate()
        assert worker.wait(timeout=10) == 0
        worker.communicate()
        server.start()
        wait_until(lambda: _reaped(engine, study.study_id))
        assert count(engine, study.study_id) == Counts(failed=1, waiting=2)
        engine.dispose()


def _reaped(engine: sa.Engine, study_id: int) -> int:
    from hpo.search.sql import heartbeats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeats, "GRACE_PERIOD_SECS", 1.5)
        return heartbeats.reap(engine, study_id)
