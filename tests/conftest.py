"""Real services for the tests: a PostgreSQL server of their own, and a fresh database for each test that asks."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings
from optuna.storages import RDBStorage
from optuna.storages._rdb.storage import _VersionManager
from postgresql_servers import fresh_database, postgresql
from support.commands import ONE_THREAD, Hpo, Start
from support.packages import importable, install
from support.search import OPENED

from hpo.cli.main import main
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.url import parse_url

settings.register_profile("suite", max_examples=25)
settings.load_profile("suite")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many tests run at once as there are cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of workers that have more would spin
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C, and pass that on


_read_head_version = _VersionManager.get_head_version
_head_versions: list[str] = []


def _remembered_head_version(manager: _VersionManager) -> str:
    """Of Optuna's tables: to find it, alembic imports ten modules anew for each storage."""
    if not _head_versions:
        _head_versions.append(_read_head_version(manager))
    return _head_versions[0]


_VersionManager.get_head_version = _remembered_head_version  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """What has been imported stays: Python's garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the test session. It need not survive a loss of power: to
    write all its files to disk at its end took a minute.
    """
    with postgresql() as server:
        engine = sa.create_engine(parse_url(server.get_uri()), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.exec_driver_sql(f"ALTER SYSTEM SET {setting} = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()
        yield server.get_uri()


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of an empty PostgreSQL database."""
    return fresh_database(postgresql_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; each test that uses it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hpo.db"
    return fresh_database(request.getfixturevalue("postgresql_server"))


@pytest.fixture(autouse=True)
def _close_databases() -> Iterator[None]:
    yield
    while OPENED:
        opened = OPENED.pop()
        if isinstance(opened, RDBStorage):
            opened.remove_session()
        (opened.engine if isinstance(opened, RDBStorage) else opened).dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and views, made once and copied for each test."""
    file = tmp_path_factory.mktemp("template") / "hpo.db"
    create_database(parse_url(f"sqlite:///{file}")).dispose()
    return file


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> str:
    """The same on the server: its name."""
    url = parse_url(fresh_database(postgresql_server))
    create_database(url).dispose()
    return str(url.database)


@pytest.fixture
def sqlite_engine(sqlite_template: Path, tmp_path: Path) -> sa.Engine:
    """A database with tables and views and no study."""
    shutil.copy(sqlite_template, tmp_path / "hpo.db")
    return _opened(f"sqlite:///{tmp_path}/hpo.db")


@pytest.fixture
def postgresql_engine(postgresql_server: str, postgresql_template: str) -> sa.Engine:
    """The same on the server."""
    return _opened(fresh_database(postgresql_server, postgresql_template))


def _opened(url: str) -> sa.Engine:
    OPENED.append(open_engine(parse_url(url)))
    return OPENED[-1]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> sa.Engine:
    """Such a database; each test that uses it runs on both kinds."""
    found: sa.Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image cache for the session."""
    return tmp_path_factory.mktemp("data-root")


@pytest.fixture
def narrow_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNets with an eighth of the channels, for what does not depend on them: trained in a tenth of the time."""
    from hpo.vision import resnet_layers

    monkeypatch.setattr(resnet_layers, "WIDTHS", (8, 16, 32, 64))


@contextmanager
def _handling_signals() -> Iterator[None]:
    """What a worker does on signals is not what the tests do."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _closing_databases() -> Iterator[None]:
    """Closes what is connected to in this block, as a process that ends does."""
    connected: set[sa.Engine] = set()

    def note(connection: sa.Connection) -> None:
        connected.add(connection.engine)

    sa.event.listen(sa.Engine, "engine_connect", note)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "engine_connect", note)
        for engine in connected:
            engine.dispose()


@pytest.fixture
def hpo_here(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hpo:
    """Runs a command in this process, in an empty folder: two hundred processes of their own took minutes. The workers
    that it starts are processes.
    """

    def run(*arguments: str, folder: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name in os.environ.keys() - environment.keys():
                if name.startswith("HPO_"):
                    patch.delenv(name)
            for name, value in ({"HPO_DATA_ROOT": str(data_root), **ONE_THREAD} | environment).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["hpo", *arguments])
            packages = importable(environment.get("PYTHONPATH", ""))
            with pytest.raises(SystemExit) as ended, _handling_signals(), _closing_databases(), packages:
                main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def hpo(tmp_path: Path, data_root: Path) -> Hpo:
    """Runs a command in a process of its own, in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HPO_")}
        return subprocess.run(
            [sys.executable, "-m", "hpo", *arguments],
            cwd=tmp_path,
            env=inherited | {"HPO_DATA_ROOT": str(data_root), **ONE_THREAD} | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def waiting(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that find the objective of support/waiting.py."""
    code = (Path(__file__).parent / "support" / "waiting.py").read_text(encoding="utf-8")
    return install(tmp_path / "waiting", "waiting", code, "[hpo.objectives]\nwaiting = waiting:Waiting\n")


@pytest.fixture
def start(tmp_path: Path, data_root: Path) -> Iterator[Start]:
    """Runs the real command in the background; what the test leaves running is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        given = {"HPO_DATA_ROOT": str(data_root), "PYTHONUNBUFFERED": "1", **ONE_THREAD}
        environment = os.environ | given | environment
        command = [sys.executable, "-m", "hpo", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with process:
            process.kill()
