"""HPO_HOOK: a real command is told of each new best trial, and of the end or the stop of a study, once."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from support.studies import make_spec

from hpo.search.sql.queries import best_trials, improvements
from hpo.search.sql.stopping import stop
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import submit
from hpo.search.worker import work

SAVE = "import sys, uuid, pathlib; (pathlib.Path(sys.argv[1]) / uuid.uuid4().hex).write_text(sys.stdin.read())"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the hook leaves what it was told."""
    (tmp_path / "save.py").write_text(SAVE)
    (tmp_path / "told").mkdir()
    monkeypatch.setenv("HPO_HOOK", f"{sys.executable} {tmp_path}/save.py {tmp_path}/told")
    return tmp_path / "told"


def events(told: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in told.iterdir()]


def finish(engine: sa.Engine, name: str = "worker") -> list[str]:
    said: list[str] = []
    work(engine, [], lambda spec, store: FreeObjective(spec), name, said.append)
    return said


def test_each_event_is_told_once_whoever_notices(engine: sa.Engine, told: Path) -> None:
    submit(engine, make_spec(budget=8, sampler={"name": "random"}))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: finish(engine, name), ["a", "b"]))
    found = events(told)
    ended = [each for each in found if each["event"] == "ended"]
    assert len(ended) == 1
    best = best_trials(engine, "study", 1)[0]
    assert (ended[0]["study"], ended[0]["finished"], ended[0]["best"]["number"]) == ("study", 8, best.number)
    bests = [each["best"]["number"] for each in found if each["event"] == "best"]
    assert len(set(bests)) == len(bests)
    assert best.number in bests
    assert set(bests) <= {trial.number for trial in improvements(engine, "study")}


def test_a_stop_is_told_with_its_reason(sqlite_engine: sa.Engine, told: Path) -> None:
    submit(sqlite_engine, make_spec(budget=50))
    (study,) = find_studies(sqlite_engine)

    class Stopping(FreeObjective):
        def run(self, trial: Any) -> Any:
            if trial.number == 3:
                stop(sqlite_engine, study, "enough")
            return super().run(trial)

    work(sqlite_engine, [], lambda spec, store: Stopping(spec), "worker", lambda text: None)
    (stopped,) = [each for each in events(told) if each["event"] == "stopped"]
    assert stopped["stopped"] == "enough"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/nowhere/at/all", "HPO_HOOK failed: "),
        (f"{sys.executable} -c 'raise SystemExit(\"no\")'", "HPO_HOOK ended with exit code 1: no"),
        ("'", "HPO_HOOK failed: No closing quotation"),
    ],
)
def test_a_hook_that_fails_is_said_and_stops_nothing(
    sqlite_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setenv("HPO_HOOK", command)
    submit(sqlite_engine, make_spec(budget=3))
    said = finish(sqlite_engine)
    assert any(words in line for line in said)
    assert find_studies(sqlite_engine)[0].stopped is None
