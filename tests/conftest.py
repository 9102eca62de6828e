"""Real services for the tests: a PostgreSQL server of their own, and a fresh database for each test that asks."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import tomli_w
from free_objective import FreeObjective
from optuna.distributions import IntDistribution
from optuna.storages import RDBStorage
from postgresql_servers import fresh_database, postgresql
from sqlalchemy.pool import NullPool

from hpo.doors.objective import BelowBaseline, Measurement
from hpo.doors.parameters import Params
from hpo.search.plan import Plan
from hpo.search.sql import claims, rungs
from hpo.search.sql.claims import Claim
from hpo.search.sql.fence import Hold, token_of
from hpo.search.sql.reports import finish, record_params, record_step
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trials
from hpo.search.sql.url import parse_url
from hpo.search.worker import work
from hpo.study_file.reading import read_spec
from hpo.study_file.spec import Spec

Hpo = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
STUDIES = Path(__file__).parent.parent / "studies"

ONE_THREAD = {"HPO_THREADS": "1"}
"""For workers of their own: as many tests run at once as there are cores."""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many tests run at once as there are cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of workers that have more would spin
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C, and pass that on


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the test session."""
    with postgresql() as server:
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


_opened: list[Any] = []


def open_fresh(url: str | sa.URL) -> sa.Engine:
    """The database as another process would open it; closed when the test ends."""
    _opened.append(create_database(parse_url(url) if isinstance(url, str) else url))
    return _opened[-1]


def optuna_storage(url: str | sa.URL) -> RDBStorage:
    """The database as Optuna's own API sees it, with nothing cached; closed when the test ends."""
    made = parse_url(url) if isinstance(url, str) else url
    _opened.append(RDBStorage(made.render_as_string(hide_password=False), engine_kwargs={"poolclass": NullPool}))
    return _opened[-1]


@pytest.fixture(autouse=True)
def _close_databases() -> Iterator[None]:
    yield
    while _opened:
        opened = _opened.pop()
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


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    """A database with tables and views and no study; each test that uses it runs on both kinds."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "hpo.db")
        url = f"sqlite:///{tmp_path}/hpo.db"
    else:
        server = request.getfixturevalue("postgresql_server")
        url = fresh_database(server, request.getfixturevalue("postgresql_template"))
    _opened.append(open_engine(parse_url(url)))
    return _opened[-1]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image cache for the session."""
    return tmp_path_factory.mktemp("data-root")


@pytest.fixture
def hpo(tmp_path: Path, data_root: Path) -> Hpo:
    """Runs the real command in an empty folder."""

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


def run(engine: sa.Engine, spec: Spec, fault: Callable[[Params], None] | None = None) -> optuna.Study:
    """Submits and works until the end; the study as Optuna loads it in another process, with nothing cached."""
    submit(engine, spec)
    work(engine, [spec.name], lambda given, store: FreeObjective(given, fault=fault), "worker", lambda text: None)
    return optuna.load_study(study_name=spec.name, storage=optuna_storage(engine.url))


def claim_next(
    engine: sa.Engine, study: Study, worker: str, baseline_alone: bool = False, token: str | None = None
) -> Claim | None:
    """Claims as a worker would."""
    return claims.claim(engine, study.key, Plan(study.spec, study.first).start_of, worker, baseline_alone, token)


def report(engine: sa.Engine, hold: Hold, step: int, score: float) -> None:
    """Reports a step as a worker would."""
    reports = [{"step": n, "score": score, "clean": score} for n in range(1, step + 1)]
    record_step(engine, hold, Measurement(step, score, {"clean": score}), reports)


def pause(engine: sa.Engine, study_id: int, hold: Hold, step: int, score: float) -> list[int]:
    """Pauses a trial after a step as a worker would."""
    return rungs.pause(engine, study_id, hold, Measurement(step, score, {"clean": score}))


def end(
    engine: sa.Engine, hold: Hold, state: str, score: float, parts: dict[str, float] | None = None, drop: float = 0.02
) -> None:
    """Ends a trial as a worker would, with a constraint if it has parts."""
    constraints = {"clean_drop": BelowBaseline("clean", drop)} if parts else {}
    finish(engine, hold, state, score, Measurement(1, score, parts or {}, constraints=constraints))


def states(study: optuna.Study) -> list[str]:
    """What became of the trials, in the order of their numbers."""
    return [trial.state.name for trial in study.trials]


def running(engine: sa.Engine) -> Hold:
    """The one trial that runs, as its worker holds it."""
    with engine.connect() as connection:
        trial_id = connection.execute(sa.select(trials.c.trial_id).where(trials.c.state == "RUNNING")).scalar_one()
        return Hold(trial_id, token_of(connection, trial_id))


def give_parameter(engine: sa.Engine, hold: Hold) -> None:
    """Gives a claimed trial a parameter, as if it had started."""
    record_params(engine, hold, {"batch_size": 16}, {"batch_size": IntDistribution(16, 64)})


def make_spec(**changes: object) -> Spec:
    """A valid spec on digits, with some keys changed."""
    document: dict[str, object] = {
        "name": "study",
        "budget": 6,
        "data": {"name": "digits"},
        "model": {"weights": "none", "input_size": 32},
        "training": {"epochs": 3, "horizontal_flip": False},
        "search": {
            "batch_size": {"choices": [16, 32, 64]},
            "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            "frozen_layers": {"low": 0, "high": 4},
            "augmentation_strength": {"low": 0.0, "high": 1.0},
        },
        "objective": {
            "clean": 0.5,
            "perturbations": [
                {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.25},
                {"name": "pixel-recolor", "fraction": 0.2, "weight": 0.25},
            ],
        },
        "sampler": {"name": "random"},  # of the others a Gaussian process takes longer than many a test
        "pruner": {"name": "none"},
    }
    return read_spec(document | changes)


def write_study(folder: Path, **changes: object) -> str:
    """A study file on digits that trains for seconds; its path."""
    small = {
        "data": {"name": "digits", "images_per_class": 8, "validation_fraction": 0.05},
        "training": {"epochs": 2, "horizontal_flip": False},
        "budget": 4,
    }
    file = folder / "study.toml"
    file.write_text(tomli_w.dumps(make_spec(**small | changes).model_dump(exclude_none=True)), encoding="utf-8")
    return str(file)
