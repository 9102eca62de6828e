"""The real command in real processes: the main job end to end, and what a user sees when something is wrong."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import optuna
import psutil
import pytest
import sqlalchemy as sa
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note
from support.commands import Hpo, Start
from support.search import optuna_storage
from support.studies import write_study
from support.waiting import write_waiting_study

from hpo.cli.main import cli
from hpo.errors import InputError
from hpo.search.sql.dead_workers import give_back_trials_of
from hpo.search.sql.queries import trials_in
from hpo.search.sql.storage import open_engine
from hpo.search.sql.url import parse_url
from hpo.vision.classifier import build_network, read_weights
from hpo.vision.training.checkpoints import weights_as_bytes
from hpo.workers.launcher import worker_name

SECRET = "s3cret-word"  # noqa: S105


def one_line(result: subprocess.CompletedProcess[str], exit_code: int = 2) -> str:
    """The only line that a refused command printed."""
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("hpo: ")
    return lines[0]


def test_the_main_job_from_a_study_file_to_the_best_configuration(
    hpo: Hpo, hpo_here: Hpo, tmp_path: Path, postgresql_url: str
) -> None:
    """On PostgreSQL, with a password; on SQLite in test_new_study.py."""
    postgresql_url = parse_url(postgresql_url).set(password=SECRET).render_as_string(hide_password=False)
    storage = {"HPO_STORAGE": postgresql_url}
    study = write_study(tmp_path, sampler={"name": "auto"})
    ran = hpo("run", study, "--workers", "2", **storage)
    assert ran.returncode == 0, ran.stderr
    assert "Best configurations of study" in ran.stdout
    assert "tuning images, the same for all trials" in ran.stdout
    assert "hpo top study" in ran.stderr

    optuna_study = optuna.load_study(study_name="study", storage=optuna_storage(postgresql_url))
    best = json.loads(hpo_here("best", "study", "--json", **storage).stdout)
    assert best["score"] == optuna_study.best_value
    assert best["params"] == optuna_study.trials[best["number"]].params
    assert set(best["perturbed_accuracy"]) == {"gaussian-noise", "pixel-recolor"}
    weights = 0.5 * best["clean_accuracy"] + 0.25 * sum(best["perturbed_accuracy"].values())
    assert best["score"] == pytest.approx(weights)
    assert best["correct"]["clean"] / best["images"] == best["clean_accuracy"]
    assert {"torch", "commit", "seed", "host", "device", "threads", "images", "weights"} <= set(best["made_by"])

    pictures = get_all_artifact_meta(optuna_study.trials[0], storage=optuna_study._storage)
    assert sorted(picture.filename for picture in pictures) == [
        "predictions.png",
        "training-curve.png",
        "weights.safetensors",
    ]
    assert all((tmp_path / "hpo-artifacts" / picture.artifact_id).stat().st_size > 5000 for picture in pictures)
    assert "Score: 0.5 × clean accuracy" in get_note(optuna_study)  # noqa: RUF001

    assert "the weights of trial" in hpo_here("best", "study", "--weights", "best.safetensors", **storage).stderr
    assert "fc.weight" in read_weights("resnet18", str(tmp_path / "best.safetensors"))
    elsewhere = hpo_here("best", "study", "--weights", "b.safetensors", HPO_ARTIFACTS=str(tmp_path / "no"), **storage)
    assert "so set HPO_ARTIFACTS to that" in elsewhere.stderr
    assert elsewhere.returncode == 1
    assert not (tmp_path / "b.safetensors").exists()

    top = json.loads(hpo_here("top", "study", "-n", "9", "--json", **storage).stdout)
    assert top[0] == best
    assert len(top) == 4
    status = json.loads(hpo_here("status", "study", "--json", **storage).stdout)
    assert {
        key: status[key] for key in ("budget", "finished", "complete", "pruned", "failed", "running", "waiting")
    } == {
        "budget": 4,
        "finished": 4,
        "complete": 4,
        "pruned": 0,
        "failed": 0,
        "running": 0,
        "waiting": 0,
    }
    assert [trial.number for trial in optuna_study.trials] == [0, 1, 2, 3]
    again = hpo_here("run", str(tmp_path / "study.toml"), **storage)
    assert again.returncode == 0
    assert "is done" in again.stderr
    assert "Best configurations of study" in again.stdout
    said = [ran.stdout, ran.stderr, hpo_here("status", "study", **storage).stdout, again.stderr]
    check_that_the_password_is_nowhere(said, tmp_path, postgresql_url)
    check_that_the_best_run_again_gives_the_same_accuracies(hpo_here, tmp_path, best, storage)


def check_that_the_password_is_nowhere(said: list[str], folder: Path, postgresql_url: str) -> None:
    """In no output, no file and no text of the database."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert not any(SECRET in text for text in said)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    engine = open_engine(parse_url(postgresql_url))
    with engine.connect() as connection:
        for table in sa.inspect(connection).get_table_names():
            rows = connection.execute(sa.text(f'SELECT * FROM "{table}"')).all()  # noqa: S608
            assert SECRET not in repr(rows)
    engine.dispose()


def check_that_the_best_run_again_gives_the_same_accuracies(
    hpo_here: Hpo, tmp_path: Path, best: dict[str, Any], storage: dict[str, str]
) -> None:
    (tmp_path / "best.toml").write_text(hpo_here("best", "study", "--toml", **storage).stdout, encoding="utf-8")
    hpo_here("submit", "best.toml", **storage)
    repeated = hpo_here("worker", f"study-trial-{best['number']}", **storage)  # one thread, as each of the two had
    assert repeated.returncode == 0, repeated.stderr
    repeats = json.loads(hpo_here("top", f"study-trial-{best['number']}", "--json", **storage).stdout)
    assert best["correct"] in [repeat["correct"] for repeat in repeats if repeat["params"] == best["params"]]


def test_a_worker_on_its_own_and_a_submitted_study(hpo: Hpo, hpo_here: Hpo, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(weights_as_bytes(build_network("resnet18", 3, {}, 32, 0, seed=0)))
    training, model = {"epochs": 1, "horizontal_flip": False}, {"weights": "w.safetensors"}
    study = write_study(tmp_path, budget=2, training=training, model=model)
    assert "submitted" in hpo_here("submit", study).stderr
    assert "nothing changed" in hpo_here("submit", study).stderr
    assert json.loads(hpo_here("status", "--json").stdout)[0]["waiting"] == 2
    assert "no complete trial yet" in one_line(hpo_here("best", "study"), exit_code=1)
    worked = hpo("worker", "study", "--threads", "1", PYTHONPROFILEIMPORTTIME="1")
    assert worked.returncode == 0, worked.stderr
    imported = {line.rpartition("|")[2].strip() for line in worked.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"torchvision", "torch._dynamo", "sympy"}, "half of a worker's start would be theirs"
    assert "trial 1 complete" in worked.stdout
    assert json.loads(hpo_here("status", "study", "--json").stdout)["finished"] == 2


def test_without_pytorch_a_worker_takes_no_trial(hpo: Hpo, hpo_here: Hpo, tmp_path: Path) -> None:
    hpo_here("submit", write_study(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libtorch_cpu.so is missing')")
    result = hpo("worker", "study", PYTHONPATH=str(tmp_path / "broken"))
    assert (
        one_line(result) == "hpo: objective 'robust-accuracy' does not work on this machine: libtorch_cpu.so is missing"
    )
    status = json.loads(hpo_here("status", "study", "--json").stdout)
    assert (status["failed"], status["interrupted"], status["running"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "absent.toml"], "absent.toml: no such study file"),
        (["run", "study.toml", "--set", "budgt=3"], "study.toml: budgt: unknown key"),
        (["run", "study.toml", "--set", "data.name=tiny-imagenet", "--set", "data.archive=no.zip"], "does not exist"),
        (["run", "study.toml", "--set", "model.weights=no.safetensors"], "no.safetensors does not exist"),
        (
            ["run", "study.toml", "--set", "model.weights=study.safetensors"],
            "study.safetensors is no .safetensors file",
        ),
        (["run", "study.toml", "--workers", "0"], "--workers"),
        (["run", "study.toml", "--workers", "99999"], "--workers: 99999 is too many for"),
        (["run", "study.toml", "--storage", "mysql://host/db"], "'mysql' is not supported"),
        (["run", "study.toml", "--storage", "nonsense"], "not a database URL"),
        (["run", "study.toml", "--storage", "postgresql://u:p@host:port/db"], "not a database URL"),
        (["submit", "study.toml", "--storage", "sqlite:///absent/x.db"], "must be a file in a folder that exists"),
        (["submit", "study.toml", "--storage", "sqlite:///."], "must be a file in a folder that exists"),
        (["runn", "study.toml"], "No such command 'runn'"),
        (["best"], "Missing argument 'STUDY'"),
        (["best", "study"], "does not exist yet"),
        (["status", "--jsn"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    hpo_here: Hpo, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    write_study(tmp_path)
    (tmp_path / "study.safetensors").write_text("no weights")
    assert expected in one_line(hpo_here(*arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.safetensors", "study.toml"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:s3cret@127.0.0.1:9/db", "postgresql://user:***@127.0.0.1:9/db"),
        ("postgresql://user@127.0.0.1:9/db?password=s3cret", "postgresql://user@127.0.0.1:9/db?password="),
    ],
)
def test_an_unreachable_database_is_one_line_without_the_password(hpo_here: Hpo, url: str, shown: str) -> None:
    line = one_line(hpo_here("status", "--storage", url), exit_code=3)
    assert shown in line
    assert "cannot be opened" in line
    assert "s3cret" not in line


def epochs_done(tmp_path: Path) -> dict[int, int]:
    """How far the running trials are, by number."""
    try:
        engine = open_engine(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    except InputError:  # not made yet
        return {}
    return {trial.number: len(trial.epochs) for trial in trials_in(engine, "study", ["RUNNING"])}


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_trial_that_was_stopped_or_killed_gives_what_the_unbroken_one_gives(
    hpo_here: Hpo, start: Start, tmp_path: Path
) -> None:
    data = {"name": "digits", "images_per_class": 15, "validation_fraction": 0.03}
    changes = {"budget": 1, "training": {"epochs": 3, "horizontal_flip": False}, "data": data}
    study = write_study(tmp_path, **changes)
    elsewhere = ("--storage", "sqlite:///unbroken.db")
    hpo_here("submit", study, *elsewhere)
    unbroken = hpo_here("worker", "study", *elsewhere, HPO_ARTIFACTS="elsewhere")
    assert unbroken.returncode == 0, unbroken.stderr
    expected = json.loads(hpo_here("best", "study", "--json", *elsewhere).stdout)

    hpo_here("submit", study)
    threads = str(expected["made_by"]["threads"])
    for trial, sign in enumerate([signal.SIGTERM, signal.SIGKILL]):
        worker = start("worker", "study", "--threads", threads)
        wait_for(worker, lambda trial=trial: epochs_done(tmp_path).get(trial, 0) > trial)  # type: ignore[misc]
        time.sleep(0.5)  # into the next epoch, after the checkpoint
        asked = time.monotonic()
        worker.send_signal(sign)
        said, _ = worker.communicate(timeout=10)
        assert time.monotonic() - asked < 10
        if sign == signal.SIGTERM:
            assert worker.returncode == 0, said
            assert "stopped; its trial, if any, was released" in said
        else:
            assert give_back_trials_of(open_engine(parse_url(f"sqlite:///{tmp_path}/hpo.db")), worker_name(worker.pid))
    finished = hpo_here("worker", "study", "--threads", threads)
    assert finished.returncode == 0, finished.stderr
    resumed = json.loads(hpo_here("best", "study", "--json").stdout)
    assert resumed["number"] == 2
    assert resumed["resumed_after_epoch"] >= 1
    assert resumed["epochs"] == expected["epochs"]
    assert resumed["correct"] == expected["correct"]
    assert list((tmp_path / "hpo-artifacts" / "study").iterdir()) == [], "no checkpoint is left"


def test_a_run_survives_the_death_of_its_workers_and_no_worker_survives_its_run(
    hpo_here: Hpo, start: Start, tmp_path: Path, waiting: dict[str, str]
) -> None:
    study = write_waiting_study(tmp_path, budget=2, steps=60)
    running = start("run", study, "--workers", "2", **waiting)
    wait_for(running, lambda: len(epochs_done(tmp_path)) == 2)
    victim, other = psutil.Process(running.pid).children()
    victim.kill()
    wait_for(running, lambda: max(epochs_done(tmp_path), default=0) > 1)  # the lost trial was given out at once
    workers = psutil.Process(running.pid).children()
    running.kill()
    said, _ = running.communicate()
    assert "was killed by SIGKILL; it starts again in 1 s" in said
    _, alive = psutil.wait_procs([*workers, other], timeout=10)
    assert not alive
    status = json.loads(hpo_here("status", "study", "--json").stdout)
    assert status["running"] == 0, "the workers gave their trials back when their supervisor had gone"
    assert status["finished"] + status["waiting"] == 2

    again = start("run", study, "--workers", "2", **waiting)
    wait_for(again, lambda: len(epochs_done(tmp_path)) > 0)
    workers = psutil.Process(again.pid).children()
    again.send_signal(signal.SIGINT)
    said, _ = again.communicate(timeout=15)
    assert again.returncode == 0
    assert "of 2 trials finished; run the same command again to continue" in said
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("names", [[], ["study"]])
def test_a_launch_says_that_its_study_was_deleted_meanwhile(
    hpo_here: Hpo, start: Start, tmp_path: Path, waiting: dict[str, str], names: list[str]
) -> None:
    hpo_here("submit", write_waiting_study(tmp_path, budget=100, steps=60), **waiting)
    launched = start("launch", *names, **waiting)
    wait_for(launched, lambda: len(epochs_done(tmp_path)) > 0)
    optuna.delete_study(study_name="study", storage=optuna_storage(f"sqlite:///{tmp_path}/hpo.db"))
    said, _ = launched.communicate(timeout=30)
    assert launched.returncode == (2 if names else 0)
    assert "study was deleted while workers were running" in said.splitlines()[-1]


def test_workers_that_cannot_start_end_the_run_with_their_reason(hpo_here: Hpo, tmp_path: Path) -> None:
    hpo_here("submit", write_study(tmp_path, model={"weights": "absent.safetensors"}))
    result = hpo_here("launch", "study", "--workers", "1")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"hpo: model.weights: {tmp_path}/absent.safetensors does not exist; give a .safetensors or .pth file"
    )
    assert json.loads(hpo_here("status", "study", "--json").stdout)["waiting"] == 4


def test_reading_commands_import_no_torch(hpo_here: Hpo, tmp_path: Path) -> None:
    hpo_here("submit", write_study(tmp_path))
    code = "import sys, hpo.cli.main as c\ntry: c.main()\nfinally: print(sorted({'torch'} & set(sys.modules)))"
    for arguments in (["--help"], ["best", "study"], ["top", "study"], ["status"]):
        command = [sys.executable, "-c", code, *arguments]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        assert printed.splitlines()[-1] == "[]", arguments


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_option_has_help(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
