"""An objective of an installed package is searched as images are: examples/tabular, in an environment of its own."""

import json
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Hpo
from support.search import open_fresh

from hpo.search.sql.dead_workers import give_back_trials_of

EXAMPLE = Path(__file__).parent.parent / "examples" / "tabular"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a virtual environment with the package installed, and beside it what this one has."""
    folder = tmp_path_factory.mktemp("tabular")
    package = shutil.copytree(EXAMPLE, folder / "package")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    made = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", made, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = [*site.getsitepackages(), str(Path(__file__).parent.parent)]
    (packages / "beside.pth").write_text("\n".join(here))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(here)}
    subprocess.run([*map(str, pip), str(package)], check=True, env=environment)
    return made


def environment(folder: Path, storage: str = "") -> dict[str, str]:
    url = storage or f"sqlite:///{folder}/hpo.db"
    return os.environ | {"HPO_STORAGE": url, "PYTHONPATH": str(EXAMPLE.parents[1])}


@pytest.fixture
def hpo(python: Path, tmp_path: Path, hpo_here: Hpo, request: pytest.FixtureRequest) -> Run:
    """The command on the database that the test asks for, in this process, which finds the package in that environment;
    what only reads does not find it.
    """
    storage = request.getfixturevalue("postgresql_url") if "postgresql_url" in request.fixturenames else ""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")

    def run(*arguments: str, alone: bool = False) -> subprocess.CompletedProcess[str]:
        given = {"HPO_STORAGE": environment(tmp_path, storage)["HPO_STORAGE"]}
        if not alone and arguments[0] in ("run", "submit", "worker", "confirm", "report", "export"):
            given["PYTHONPATH"] = str(packages)
        return hpo_here(*arguments, **given)

    return run


def study_file(folder: Path, **objective: Any) -> str:
    """The example's, with a sampler that costs nothing."""
    import tomllib

    import tomli_w

    document = tomllib.loads((EXAMPLE / "study.toml").read_text())
    document["objective"] |= objective
    document |= {"budget": 8, "sampler": {"name": "random"}}
    (folder / "study.toml").write_text(tomli_w.dumps(document))
    return "study.toml"


def found(hpo: Run, *arguments: str) -> Any:
    ran = hpo(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_an_objective_of_a_package_is_searched_by_real_workers(
    postgresql_url: str, hpo: Run, python: Path, tmp_path: Path
) -> None:
    command = [python, "-m", "hpo", "run", study_file(tmp_path, max_clean_drop=0.02), "--workers", "2"]
    given = environment(tmp_path, postgresql_url)
    ran = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert "clean" in ran.stdout
    assert "%" not in ran.stdout.replace("(95 %)", ""), "only of accuracies of images it is known that they are shares"
    status = found(hpo, "status", "tabular")
    assert (status["finished"], status["waiting"], status["running"]) == (8, 0, 0)
    top = found(hpo, "top", "tabular", "-n", "50")
    assert all(set(trial["parts"]) == {"clean", "noise"} for trial in top)
    assert all(trial["score"] == sum(trial["parts"].values()) / 2 for trial in top)
    assert {trial["made_by"]["objective"] for trial in top} == {"hpo-tabular 0.1.0"}
    assert {type(trial["params"]["average_after"]) for trial in top} == {int}
    baseline = next(trial for trial in top if trial["baseline"])
    assert baseline["params"]["loss"] == "log_loss"
    for trial in top:
        assert trial["feasible"] == (baseline["parts"]["clean"] - trial["parts"]["clean"] <= 0.02)
    chosen = found(hpo, "top", "tabular", "--where", "noise > 0.5 and loss = 'log_loss'", "--sort", "alpha:asc")
    assert chosen
    assert {trial["params"]["loss"] for trial in chosen} == {"log_loss"}
    front = found(hpo, "pareto", "tabular")
    assert {trial["number"] for trial in front} <= {trial["number"] for trial in top}
    header = hpo("top", "tabular", "--csv").stdout.splitlines()[0].split(",")
    assert {"noise", "alpha", "learning_rate", "average_after", "loss"} <= set(header)
    assert "noise" in hpo("top", "tabular").stdout

    (tmp_path / "best.toml").write_text(hpo("best", "tabular", "--toml").stdout)
    assert hpo("submit", "best.toml").returncode == 0
    again = hpo("worker")
    assert again.returncode == 0, again.stderr
    (same,) = found(hpo, "top", found(hpo, "status")[-1]["study"])
    assert same["score"] == found(hpo, "best", "tabular")["score"]


MISTAKES = {
    "objective.noize=1": "objective.noize: unknown key; allowed here: name, steps, noise, max_clean_drop.",
    "objective.noise=-1": "objective.noise: must be greater than or equal to 0, not -1",
    "objective.name=noisy-tabula": "installed here are: robust-accuracy, noisy-tabular. Did you mean 'noisy-tabular'?",
    "search.score=3": "search: 'score' is taken; choose another name",
    "search.loss={ choices = [1, 'hinge'] }": "mixes numbers and words",
    "data.name=digits": "data: unknown key; allowed here: name, budget, seed,",
}
READ = """
import json, sys
from pathlib import Path
from hpo.errors import SpecError
from hpo.study_file.reading import load_spec
for override in json.loads(sys.argv[1]):
    try:
        load_spec(Path("study.toml"), [override])
    except SpecError as error:
        print(error)
"""


def test_mistakes_are_refused_in_one_line(hpo: Run, python: Path, tmp_path: Path) -> None:
    refused = hpo("submit", study_file(tmp_path), "--set", "objective.noize=1")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "Did you mean 'noise'?" in refused.stderr
    assert not (tmp_path / "hpo.db").exists()
    command = [python, "-c", READ, json.dumps(list(MISTAKES))]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    for said, words in zip(ran.stdout.splitlines(), MISTAKES.values(), strict=True):
        assert words in said


def test_what_differs_from_a_study_that_was_submitted_is_said(hpo: Run, tmp_path: Path) -> None:
    assert hpo("submit", study_file(tmp_path)).returncode == 0
    refused = hpo("submit", "study.toml", "--set", "objective.noise=0.5", "--set", "search.alpha.low=1e-5")
    assert refused.returncode == 2
    assert "search.alpha.low = 1e-06, not 1e-05; objective.noise = 1.0, not 0.5; choose another" in refused.stderr


def test_where_the_package_is_missing_its_studies_are_read_and_not_worked_on(hpo: Run, tmp_path: Path) -> None:
    assert hpo("submit", study_file(tmp_path)).returncode == 0
    assert hpo("submit", "study.toml", "--set", "name=done", "--set", "budget=2").returncode == 0
    assert hpo("worker", "done").returncode == 0
    for command in (["status"], ["top", "done"]):
        assert hpo(*command).returncode == 0
    refused = hpo("worker", "tabular", alone=True)
    assert refused.returncode == 2
    assert "no objective 'noisy-tabular'; installed here are: robust-accuracy" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert found(hpo, "status", "tabular")["failed"] == 0


def test_a_trial_goes_on_from_its_checkpoint_after_its_worker_was_killed(
    hpo: Run, python: Path, tmp_path: Path
) -> None:
    study = study_file(tmp_path, steps=200)  # seconds long: checkpoints are a second apart
    changes = ("--set", "budget=2", "--set", "pruner.name=none")
    hpo("submit", study, *changes, "--set", "name=unbroken")
    assert hpo("worker", "unbroken").returncode == 0
    hpo("submit", study, *changes)
    command = [python, "-m", "hpo", "worker", "tabular"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path)) as worker:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("tabular/trial-*.checkpoint")) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.kill()
    (trial,) = found(hpo, "status", "tabular")["running_trials"]
    assert give_back_trials_of(open_fresh(f"sqlite:///{tmp_path}/hpo.db"), trial["worker"])
    assert hpo("worker", "tabular").returncode == 0
    broken, unbroken = (found(hpo, "top", name) for name in ("tabular", "unbroken"))
    assert any(trial["resumed_after_epoch"] for trial in broken)
    curves = [sorted(json.dumps(trial["epochs"]) for trial in trials) for trials in (broken, unbroken)]
    assert curves[0] == curves[1]


def test_an_objective_of_a_package_is_confirmed_and_reported(hpo: Run, tmp_path: Path) -> None:
    assert hpo("submit", study_file(tmp_path)).returncode == 0
    assert hpo("worker").returncode == 0
    rows = found(hpo, "confirm", "tabular", "--top", "1", "--seeds", "3")
    assert {(row["role"], row["condition"]) for row in rows} == {
        (role, condition) for role in ("baseline", "candidate") for condition in ("clean", "noise")
    }
    assert all(row["images"] == 114 and len(row["correct"]) == 3 for row in rows)
    ran = hpo("report", "tabular")
    assert ran.returncode == 0, ran.stderr
    assert "only studies of images have images" in ran.stderr
    text = (tmp_path / "tabular-report.html").read_text()
    assert "3 seeds are too few to claim anything of 2 conditions" in text
    assert "points" not in text, "only of accuracies of images it is known that they are shares"
