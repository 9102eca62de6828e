"""Databases as people have them: half made, behind poolers, in a schema of their own, read-only for a while."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from postgresql_servers import pgbouncer
from support.commands import Hpo
from support.search import claim_next, open_fresh
from support.studies import make_spec

from hpo.doors.objective import Trial
from hpo.errors import InputError, StorageError
from hpo.search.sql import network_drive, storage
from hpo.search.sql.counts import count
from hpo.search.sql.network_drive import check_network_drive
from hpo.search.sql.outages import is_outage
from hpo.search.sql.storage import create_database, open_engine, unreachable
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.search.worker import work

QUICKSTART = str(Path(__file__).parent.parent / "studies" / "quickstart.toml")
WITHOUT_VIEWS = "DROP VIEW best_configs; DROP VIEW trial_results;"


@pytest.mark.parametrize(
    "left",
    [
        "DELETE FROM alembic_version",
        "DROP TABLE alembic_version",
        "DROP TABLE alembic_version; DROP TABLE version_info",
        "DROP TABLE alembic_version; DROP TABLE version_info; DROP TABLE trial_heartbeats; DROP TABLE trial_values",
        "DELETE FROM alembic_version; DELETE FROM version_info",
        "",
    ],
)
def test_tables_that_were_half_made_are_finished(storage_url: str, left: str) -> None:
    engine = create_database(parse_url(storage_url))
    with engine.begin() as connection:
        for statement in (WITHOUT_VIEWS + left).split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    study, _ = submit(open_fresh(storage_url), make_spec(budget=3))
    assert claim_next(open_fresh(storage_url), study, "worker") is not None


def test_tables_of_another_program_are_left_alone(storage_url: str) -> None:
    engine = sa.create_engine(parse_url(storage_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE trials (patient integer, drug text)")
    with pytest.raises(InputError, match="has a table 'trials' of another program; give hpo a database"):
        create_database(parse_url(storage_url))
    assert sa.inspect(engine).get_table_names() == ["trials"]
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p@ss/w#rd@127.0.0.1:9/db",
        "postgresql://user:se@cret@127.0.0.1:9/db",
        "postgresql://user@corp:se/cr@et@127.0.0.1:9/db",
        "postgresql://user:p@ss@word/x@host/db",
    ],
)
def test_no_part_of_a_password_with_an_at_sign_is_shown(hpo_here: Hpo, url: str) -> None:
    ran = hpo_here("status", "--storage", url)
    assert ran.returncode == 2
    assert "write @ as %40" in ran.stderr
    assert not any(
        part in ran.stderr + ran.stdout for part in ("w#rd", "p@ss", "ss/", "cret", "word/x", "se/", "127.0.0.1")
    )


def test_a_password_is_taken_out_of_the_reason_as_a_word() -> None:
    url = parse_url("postgresql://user:p@host/db")
    said = str(unreachable(url, RuntimeError('invalid option "p" in the pool')))
    assert 'invalid option "***" in the pool' in said


def test_an_old_sqlite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    with pytest.raises(InputError, match=r"needs SQLite 3\.38 or later, this Python has 3\.34\.1"):
        parse_url("sqlite:///hpo.db")


def test_a_schema_of_its_own_is_used(postgresql_url: str) -> None:
    """Where `public` may not be written."""
    engine = sa.create_engine(parse_url(postgresql_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA experiments")
    url = parse_url(postgresql_url).update_query_dict({"options": "-csearch_path=experiments"})
    study, _ = submit(open_fresh(url), make_spec(budget=3))
    work(open_fresh(url), [], FreeObjective, "worker", lambda text: None)
    assert count(open_fresh(url), study.study_id).finished == 3
    inspector = sa.inspect(engine)
    assert "trials" in inspector.get_table_names("experiments")
    assert inspector.get_table_names("public") == []
    engine.dispose()


needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer") is None and not os.environ.get("HPO_REQUIRE_PGBOUNCER"), reason="needs pgbouncer"
)


@needs_pgbouncer
def test_a_pooler_in_transaction_mode_is_no_obstacle(postgresql_url: str, tmp_path: Path) -> None:
    with pgbouncer(postgresql_url) as pooled:
        environment = os.environ | {"HPO_STORAGE": pooled}
        for _ in range(2):  # the second waits for no lock of the first
            command = [sys.executable, "-m", "hpo", "submit", QUICKSTART]
            ran = subprocess.run(command, cwd=tmp_path, env=environment, timeout=30, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stderr
        study, _ = submit(open_fresh(pooled), make_spec(budget=30, pruner={"name": "asha"}))
        engines = [open_fresh(pooled) for _ in range(3)]
        failures: list[BaseException] = []

        def run(engine: sa.Engine) -> None:
            try:
                work(engine, ["study"], FreeObjective, "worker", lambda text: None)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        counts = count(engines[0], study.study_id)
        assert (counts.finished, counts.failed) == (30, 0)
        with open_fresh(postgresql_url).connect() as connection:
            kept = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.exec_driver_sql(kept).scalar() == 0
        with engines[0].connect() as connection:  # others share this connection
            setting = "SHOW idle_in_transaction_session_timeout"
            assert connection.exec_driver_sql(setting).scalar() == "0"


def test_a_server_that_is_read_only_for_a_while_is_waited_for(postgresql_url: str) -> None:
    """As after a failover, whose old connections lead to a standby: others are made, and nothing is lost."""
    engine = open_fresh(postgresql_url)
    study, _ = submit(engine, make_spec(budget=6))
    name = parse_url(postgresql_url).database
    admin = sa.create_engine(parse_url(postgresql_url).set(database="postgres"), isolation_level="AUTOCOMMIT")

    def set_read_only(on: bool) -> None:
        with admin.connect() as connection:
            word = "on" if on else "off"
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {word}")

    def kill_connections() -> None:
        with admin.connect() as connection:
            terminate = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
            connection.execute(terminate, {"name": name})

    started: list[int] = []

    class Failing(FreeObjective):
        def run(self, trial: Trial) -> Any:
            started.append(trial.number)
            for measurement in super().run(trial):
                if trial.number == 2 and measurement.step == 2:
                    set_read_only(True)
                    kill_connections()
                    threading.Timer(3, set_read_only, [False]).start()  # and the connections stay
                yield measurement

    said: list[str] = []
    work(engine, ["study"], Failing, "worker", said.append)
    admin.dispose()
    counts = count(engine, study.study_id)
    assert (counts.finished, counts.failed) == (6, 0)
    assert len(started) == 6
    assert any("the database is away" in line for line in said)


def test_what_is_read_only_is_an_outage(postgresql_url: str) -> None:
    engine = open_fresh(postgresql_url)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = on")
        connection.commit()
        with pytest.raises(sa.exc.DBAPIError) as raised:
            connection.exec_driver_sql("CREATE TABLE x (y integer)")
    assert is_outage(raised.value)
    assert getattr(raised.value.orig, "sqlstate", None) == storage.READ_ONLY


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_that_was_ignored_before_stays_ignored(tmp_path: Path, name: str) -> None:
    """As `nohup` asks for, and shells for what runs in the background."""
    code = f"""
import os, signal, sys
signal.signal(signal.{name}, signal.SIG_IGN)
from hpo.stopping import stop_on_signals
stop_on_signals()
os.kill(os.getpid(), signal.{name})
os.kill(os.getpid(), signal.SIGUSR1)  # as Slurm sends it ahead of the end
print("goes on")
os.kill(os.getpid(), signal.SIGTERM)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "goes on\n"
    assert "Stopped" in ran.stderr


def test_whoever_wakes_up_buries_nobody_at_once(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was suspended: all its workers slept, and their heartbeats look old."""
    from hpo.search.sql import heartbeats, outages

    study, _ = submit(engine, make_spec(budget=4))
    claim = claim_next(engine, study, "another")
    assert claim is not None
    monkeypatch.setattr(outages, "_last_outage", float("-inf"))
    monkeypatch.setattr(outages, "_last_look", time.time() - 70)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2026-01-01 00:00:00'")
    assert heartbeats.reap(engine, study.study_id) == 0
    assert heartbeats.beat(engine, study.study_id, claim.hold) == "running"  # now it has beaten
    monkeypatch.setattr(outages, "_last_outage", time.monotonic() - heartbeats.GRACE_PERIOD_SECS - 1)
    assert heartbeats.reap(engine, study.study_id) == 0
    assert count(engine, study.study_id).running == 1


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "ext4"])
def test_sqlite_on_a_networks_drive_serves_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shared = tmp_path / "a drive"
    shared.mkdir()
    mounts = tmp_path / "mountinfo"
    escaped = str(shared).replace(" ", "\\040")
    mounts.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {escaped} rw,relatime shared:1 - {kind} host:/x rw\n"
    )
    monkeypatch.setattr(network_drive, "MOUNTS", mounts)
    engine = open_fresh(f"sqlite:///{shared}/hpo.db")
    said: list[str] = []
    check_network_drive(engine, said.append)
    assert (f"is on a network drive ({kind}): SQLite serves the workers of one machine" in "".join(said)) == (
        kind != "ext4"
    )
    study, _ = submit(engine, make_spec())
    claim_next(engine, study, f"{socket.gethostname()}:1")
    check_network_drive(engine, said.append)
    claim_next(engine, study, "elsewhere:12-ab")
    if kind == "ext4":
        check_network_drive(engine, said.append)
        assert said == []
        return
    with pytest.raises(InputError, match="and workers of elsewhere use it: SQLite serves one machine; use PostgreSQL"):
        check_network_drive(engine, said.append)


@pytest.mark.parametrize(
    ("change", "strange"),
    [
        (None, None),
        ("ALTER TABLE trials ADD COLUMN note varchar(20)", None),
        ("ALTER TABLE trial_params RENAME COLUMN param_value TO value", "trial_params.param_value"),
        ("ALTER TABLE trial_heartbeats RENAME TO beats", "trial_heartbeats.trial_heartbeat_id"),
    ],
)
def test_a_newer_optuna_is_worked_with_as_long_as_its_columns_are_the_same(
    engine: sa.Engine, change: str | None, strange: str | None
) -> None:
    submit(engine, make_spec(budget=2))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.0.0'")
        if change is not None and "RENAME" in change:
            connection.exec_driver_sql("DROP VIEW best_configs")
            connection.exec_driver_sql("DROP VIEW trial_results")
            connection.exec_driver_sql("CREATE VIEW trial_results AS SELECT 1 AS study")
        if change is not None:
            connection.exec_driver_sql(change)
    if strange is None:
        opened = open_engine(engine.url)
        work(opened, [], FreeObjective, "worker", print)
        opened.dispose()
        return
    with pytest.raises(StorageError) as refused:
        open_engine(engine.url)
    assert f"in version v9.0.0, not v3.2.0.a, and they differ in {strange}" in str(refused.value)
    assert "\n" not in str(refused.value)
