"""The reading commands and the Python API, as people type them, on a finished study."""

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from free_objective import FreeObjective
from large_study import fill
from rich.console import Console, RenderableType
from support.commands import Hpo, Start
from support.search import claim_next, end, pause
from support.studies import make_spec, write_study

import hpo as package
from hpo import errors
from hpo.cli import progress, tables
from hpo.cli.options import print_json
from hpo.cli.watching import look
from hpo.errors import HpoError, InputError
from hpo.search.sql import attributes, claims
from hpo.search.sql.attributes import SPLIT_KEY
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import study_user_attributes
from hpo.search.sql.url import parse_url
from hpo.search.worker import work


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with hpo.db, in which a study of 200 made-up trials is finished."""
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    fill(engine, "large", 200)
    engine.dispose()
    return tmp_path


def test_json_and_csv_say_the_same(hpo_here: Hpo, folder: Path) -> None:
    for arguments in (["top", "large", "-n", "3"], ["pareto", "large"], ["history", "large"]):
        records = json.loads(hpo_here(*arguments, "--json").stdout)
        rows = list(csv.DictReader(io.StringIO(hpo_here(*arguments, "--csv").stdout)))
        assert [int(row["number"]) for row in rows] == [record["number"] for record in records]
        for row, record in zip(rows, records, strict=True):
            assert float(row["score"]) == record["score"]
            assert float(row["gaussian_noise"]) == record["perturbed_accuracy"]["gaussian-noise"]
            assert row["batch_size"] == str(record["params"]["batch_size"])
    shares = json.loads(hpo_here("importances", "large", "--json").stdout)
    assert math.isclose(sum(shares.values()), 1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_tables_show_what_was_asked_for(hpo_here: Hpo, folder: Path) -> None:
    shown = hpo_here(
        "top", "large", "-n", "2", "--where", "batch_size >= 128 and state = 'pruned'", "--sort", "number:asc"
    )
    assert "where batch_size >= 128 and state = 'pruned' by number:asc" in " ".join(shown.stdout.split())
    assert "█" in hpo_here("importances", "large").stdout
    assert "recolor" in hpo_here("history", "large").stdout
    nothing = hpo_here("top", "large", "--where", "clean_accuracy > 0.99")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "has no complete trial where clean_accuracy > 0.99; for other trials name the state" in nothing.stderr
    assert hpo_here("top", "large", "--where", "clean_accuracy > 0.99", "--csv").stdout.startswith(
        "study,number,state,"
    )
    mistaken = hpo_here("top", "large", "--where", "batch > 1")
    assert mistaken.returncode == 2
    assert mistaken.stderr.startswith("hpo: --where: 'batch' is not a field; fields: number,")
    assert "give only one of them" in hpo_here("top", "large", "--json", "--csv").stderr


def test_a_study_without_a_complete_trial_is_one_line(hpo_here: Hpo, tmp_path: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    submit(engine, make_spec())
    engine.dispose()
    for command in ("best", "top", "pareto", "history"):
        refused = hpo_here(command, "study")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("hpo: study 'study' has no complete trial yet; `hpo status study` shows")
        assert refused.stderr.count("\n") == 1
    assert (hpo_here("top", "study", "--json").returncode, hpo_here("top", "study", "--json").stdout) == (0, "[]\n")


def test_equal_scores_have_no_importances(hpo_here: Hpo, folder: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{folder}/hpo.db"))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE trial_values SET value = 0.1 + 0.2"))
    engine.dispose()
    for options in ([], ["--json"], ["--csv"]):
        refused = hpo_here("importances", "large", *options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == (
            "hpo: all complete trials of study 'large' have the same score: there is nothing to explain\n"
        )


def test_status_and_watch_show_what_runs_and_end_with_the_budget(hpo_here: Hpo, start: Start, tmp_path: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    for name in ("[bold]odd", "second"):
        study, _ = submit(engine, make_spec(name=name, budget=2))
    claim_next(engine, study, "far-away:77")
    shown = hpo_here("status").stdout
    assert "[bold]odd" in shown
    lines = [line.split() for line in shown.splitlines()]
    heading = next(line for line in lines if line[:1] == ["study"])
    assert dict(zip(heading[:6], next(line for line in lines if line[:1] == ["second"]), strict=False)) == {
        "study": "second",
        "finished": "0/2",
        "complete": "0",
        "pruned": "0",
        "failed": "0",
        "running": "1",
    }
    assert "far-away:77" in shown
    watching = start("watch", "second", "--interval", "0.1")
    assert watching.stdout is not None
    while "far-away:77" not in watching.stdout.readline():
        assert watching.poll() is None
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE trials SET state = 'COMPLETE' WHERE study_id = 2"))
    said, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert "done" in said
    engine.dispose()


def said_to_people(view: RenderableType) -> str:
    out = Console(width=80, file=io.StringIO(), highlight=False, markup=False)
    out.print(view)
    return " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]


def test_status_counts_one_trial_as_one_and_interruptions_apart(tmp_path: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    study, _ = submit(engine, make_spec(budget=3, objective=tight_objective(0.015)))
    paused = claim_next(engine, study, "host:1")
    interrupted = claim_next(engine, study, "host:2")
    assert paused is not None
    assert interrupted is not None
    pause(engine, study.study_id, paused.hold, 1, 0.5)
    claims.give_back(engine, interrupted.hold, "stopped", "its worker was asked to stop")
    with engine.begin() as connection:
        split = {"train": 1026, "tuning": 114, "test": 1, "classes": 3}
        attributes.write(connection, study_user_attributes, study.study_id, {SPLIT_KEY: split})
    said = said_to_people(look(engine, [], reap=False))
    assert " study 0/3 0 0 0 0 – – –" in said, "nothing failed"  # noqa: RUF001
    assert "study: 1 trial was interrupted and requeued" in said
    assert "study: 1 trial is paused, and resumed if promoted" in said
    assert "study: 1,026 training, 114 tuning and 1 test image of 3 classes" in said
    assert "max_clean_drop = 0.015 is 1.7 of 114 tuning images: a single image can decide" in said
    engine.dispose()


def test_a_run_says_how_many_images_there_are_as_soon_as_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    study, _ = submit(engine, make_spec(objective=tight_objective(0.015)))
    looks = iter([True, True, False])

    def working() -> bool:
        look = next(looks)
        if not look:
            with engine.begin() as connection:
                split = {"train": 1026, "tuning": 114, "test": 285, "classes": 3}
                attributes.write(connection, study_user_attributes, study.study_id, {SPLIT_KEY: split})
        return look

    progress.follow(engine, study, working)
    said = capsys.readouterr().err
    assert said.count("images: 1,026 training, 114 tuning and 285 test images of 3 classes") == 1
    assert said.count("Warning: max_clean_drop = 0.015 is 1.7 of 114 tuning images: a single image can decide") == 1
    engine.dispose()


def test_a_log_says_now_and_then_what_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal nothing was said for as long as a trial took."""
    monkeypatch.setattr(progress, "QUIET_SECS", 0.0)
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    study, _ = submit(engine, make_spec())
    looks = iter([True, True, False])

    def working() -> bool:
        claim_next(engine, study, "host:1")
        return next(looks)

    progress.follow(engine, study, working)
    said = capsys.readouterr().err
    assert said.count("0 of 6 trials finished; ") == 2
    assert "baseline" in said or "trial" in said
    engine.dispose()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full disk")
@pytest.mark.parametrize("arguments", [["status"], ["top", "loose", "--csv"], ["best", "loose", "--json"]])
def test_a_table_for_a_full_disk_is_one_line(constrained: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hpo", *arguments]
        ran = subprocess.run(command, cwd=constrained, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == ["hpo: no space left on the device: cannot write the output"]


def test_infeasible_trials_are_sorted_as_it_was_asked_for(hpo_here: Hpo, constrained: Path) -> None:
    for sort, ascending in (("score:asc", True), ("learning_rate", False), ("score", False)):
        found = json.loads(hpo_here("top", "tight", "--sort", sort, "--json").stdout)
        infeasible = [trial for trial in found if not trial["feasible"]]
        assert len(infeasible) > 2
        field = sort.removesuffix(":asc")
        values = [trial["params"][field] if field in trial["params"] else trial[field] for trial in infeasible]
        if sort == "score":
            values = [trial["clean_accuracy"] for trial in infeasible]  # the least infeasible first
        assert values == sorted(values, reverse=not ascending), sort


def test_options_that_exclude_each_other_and_numbers_out_of_range_are_refused(hpo_here: Hpo, constrained: Path) -> None:
    refused = hpo_here("best", "loose", "--csv", "--toml")
    assert (refused.returncode, refused.stderr) == (2, "hpo: --csv and --toml: give only one of them\n")
    refused = hpo_here("top", "loose", "-n", "9" * 20)
    assert refused.returncode == 2
    assert "is not in the range 1<=x<=1000000" in refused.stderr


def tight_objective(max_clean_drop: float) -> dict[str, object]:
    noise = {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.5}
    return {"clean": 0.5, "max_clean_drop": max_clean_drop, "perturbations": [noise]}


@pytest.fixture
def constrained(tmp_path: Path) -> Path:
    """A folder with two studies of six trials: `loose` has feasible and infeasible ones, `tight` only its baseline."""
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    strong = {"learning_rate": {"low": 0.02, "high": 0.1}, "augmentation_strength": {"choices": [0.0, 0.9, 1.0]}}
    for name, changes in {"loose": {}, "tight": {"search": strong}}.items():
        spec = make_spec(name=name, budget=6, objective=tight_objective(0.02), **changes)
        submit(engine, spec)
        work(engine, [name], FreeObjective, "worker", lambda text: None)
    engine.dispose()
    return tmp_path


def test_where_there_is_a_constraint_every_table_shows_what_is_feasible(hpo_here: Hpo, constrained: Path) -> None:
    for command in ("top", "pareto"):
        shown = hpo_here(command, "loose").stdout
        trials = {int(row["number"]): row for row in json.loads(hpo_here(command, "loose", "--json").stdout)}
        marks = dict(re.findall(r"^ +(\d+)  ([✓✗])", shown, re.MULTILINE))
        assert {int(number): mark == "✓" for number, mark in marks.items()} == {
            number: row["feasible"] for number, row in trials.items()
        }
        assert set(marks.values()) == {"✓", "✗"}
        assert "✓ feasible: at most 2 points of clean accuracy below the baseline" in shown
    infeasible = hpo_here("top", "loose", "--where", "feasible = 0").stdout
    assert "✗" in infeasible
    assert "o trial is feasible" not in infeasible
    assert "✓" not in hpo_here("top", "large").stdout


def test_no_trial_is_shown_as_feasible_before_it_and_the_baseline_are_complete(hpo_here: Hpo, tmp_path: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    study, _ = submit(engine, make_spec(budget=2, objective=tight_objective(0.02)))
    claimed = [claim_next(engine, study, "host:1") for _ in range(2)]
    attempts = {claim.start.baseline: claim.hold for claim in claimed if claim is not None}
    accuracies = {"clean": 0.9, "gaussian-noise": 0.5}
    assert marks(hpo_here("top", "study", "--where", "state = 'running'").stdout) == ["–", "–"]  # noqa: RUF001
    end(engine, attempts[False], "COMPLETE", 0.7, accuracies)
    assert marks(hpo_here("top", "study").stdout) == ["–"]  # noqa: RUF001
    end(engine, attempts[True], "COMPLETE", 0.6, accuracies)
    assert marks(hpo_here("top", "study").stdout) == ["✓", "✓", "✓"], "the baseline once more below"
    engine.dispose()


def marks(table: str) -> list[str]:
    return re.findall(r"^ *(?:\d+|baseline)  ([✓✗–])", table, re.MULTILINE)  # noqa: RUF001


def test_a_best_that_is_the_baseline_is_said_to_be(hpo_here: Hpo, constrained: Path) -> None:
    assert json.loads(hpo_here("best", "tight", "--json").stdout)["baseline"]
    for command in ("best", "top"):
        assert "No feasible trial beats the baseline." in hpo_here(command, "tight").stdout
        assert "beats the baseline" not in hpo_here(command, "loose").stdout
    assert hpo_here("best", "tight", "--toml").stdout.startswith("# No feasible trial beats the baseline: this is the")
    assert "beats the baseline" not in hpo_here("best", "loose", "--toml").stdout


def test_tables_say_how_much_so_many_images_tell(hpo_here: Hpo, folder: Path) -> None:
    assert "With this many images an accuracy is known to ± 2.0 points (95 % confidence)" in " ".join(
        hpo_here("best", "large").stdout.split()
    )
    assert tables.half_width(0.5, 2500) == pytest.approx(1.96 * math.sqrt(0.25 / 2500), rel=1e-3)
    assert 0 < tables.half_width(1.0, 114) < 0.03, "all right is not quite certain"


def test_ctrl_c_is_the_way_out_of_watch(hpo_here: Hpo, start: Start, tmp_path: Path) -> None:
    hpo_here("submit", write_study(tmp_path))
    watching = start("watch")
    assert watching.stdout is not None
    while "study" not in watching.stdout.readline():
        assert watching.poll() is None
    watching.send_signal(signal.SIGINT)
    said, _ = watching.communicate(timeout=10)
    assert (watching.returncode, "interrupted" in said) == (0, False)


def test_python_gives_typed_records_and_frames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", f"sqlite:///{folder}/hpo.db")
    best = package.best("large")
    assert best == package.top("large", 1)[0]
    assert isinstance(best, package.TrialResult)
    everything = package.load_results("large")
    assert [trial.number for trial in everything] == list(range(200))
    frame = everything.to_pandas()
    assert len(frame) == 200
    assert frame.loc[best.number, "score"] == best.score
    assert {"clean_accuracy", "gaussian_noise", "batch_size", "state", "finished_at"} <= set(frame.columns)
    few = package.load_results("large", where="state = 'complete' and gaussian_noise > 0.45")
    assert 0 < len(few) < 200
    assert package.history("large")[-1] == best
    assert best.number in [trial.number for trial in package.pareto("large")] or not best.feasible
    with pytest.raises(HpoError, match="Did you mean 'large'"):
        package.best("larg")
    with pytest.raises(AttributeError, match="has no attribute 'worst'"):
        _ = package.worst  # type: ignore[attr-defined]


def test_python_submits_and_the_perturbations_are_functions(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/hpo.db"
    assert package.submit(write_study(tmp_path), storage, overrides=["budget=3"]) == "study"
    assert package.submit(make_spec(budget=3, name="other"), storage) == "other"
    assert package.load_results("study", storage=storage) == [], "no trial before a worker starts one"
    images = torch.rand(4, 3, 16, 16)
    for name in ("gaussian-noise", "pixel-recolor"):
        perturbed = package.perturb(name, images, 0.2)
        assert torch.equal(perturbed, package.perturb(name, images, 0.2))
        assert not torch.equal(perturbed, package.perturb(name, images, 0.2, seed=1))
        assert torch.equal(package.perturb(name, images, 0.0), images)
        assert perturbed.shape == images.shape
        assert 0 <= perturbed.min() <= perturbed.max() <= 1
    with pytest.raises(InputError, match="installed here are: adversarial-noise, adversarial-pixels"):
        package.perturb("frosted-glass", images, 0.2)
    for wrong in (images[0], images[:, :1], images.double(), images.numpy(), (images * 255).byte(), images * 2):
        with pytest.raises(InputError, match="images must"):
            package.perturb("gaussian-noise", wrong, 0.2)
    for severity in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match="perturbation 'gaussian-noise': sigma: "):
            package.perturb("gaussian-noise", images, severity)
    with pytest.raises(InputError, match="n must be at least 1"):
        package.top("study", -1, storage=storage)


def in_python(code: str, folder: Path) -> str:
    """What a Python of its own prints."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_public_name_is_there_and_no_other(tmp_path: Path) -> None:
    code = "from hpo import *; print(sorted(name for name in globals() if not name.startswith('_')))"
    assert in_python(code, tmp_path).strip() == str(sorted(package.__all__))
    ours = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, HpoError)]
    assert set(ours) < set(package.__all__)
    assert package.StudyError is errors.StudyError
    assert set(package.__all__) < set(dir(package))


def test_help_tells_what_there_is(tmp_path: Path) -> None:
    said = in_python("import hpo; help(hpo)", tmp_path)
    for text in ("hpo.run(", "load_results(study: str", "class HpoError", "perturb(name: str", "class TrialResult"):
        assert text in said


def test_frames_without_pandas_name_the_extra(folder: Path) -> None:
    code = """
import sys, hpo
sys.modules["pandas"] = None
try:
    hpo.load_results("large").to_pandas()
except hpo.HpoError as error:
    print(error)
"""
    assert in_python(code, folder) == "to_pandas() needs another package: pip install pandas\n"


@pytest.mark.parametrize(
    ("exception", "first_line"),
    [
        (RuntimeError("boom\nsecond line"), "RuntimeError: boom"),
        (KeyError("rate"), "KeyError: 'rate'"),
        (ValueError(), "ValueError"),
        (ExceptionGroup("several", [ValueError("one")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_a_failure_is_told_by_the_first_line_of_its_exception(exception: Exception, first_line: str) -> None:
    try:
        raise exception
    except Exception:
        text = traceback.format_exc()
    assert errors.reason_in(text) == first_line
    assert errors.reason_in("the kernel killed it") == "the kernel killed it"


def test_importing_hpo_loads_neither_torch_nor_optuna(folder: Path) -> None:
    code = "import hpo, sys; hpo.best('large'); print(sorted({'torch', 'optuna', 'pandas'} & set(sys.modules)))"
    assert in_python(code, folder) == "[]\n"
    light = "import hpo, sys; print(sorted({'sqlalchemy', 'pydantic', 'hpo.api'} & set(sys.modules)))"
    assert in_python(light, folder) == "[]\n"


def test_json_has_no_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"score": math.nan, "parts": (math.inf, 0.5)}])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == [{"score": None, "parts": [None, 0.5]}]


@pytest.mark.parametrize(
    ("score", "shown"), [(0.5, "0.5000"), (0.0, "0.0000"), (-0.25, "-0.2500"), (1e-7, "1e-07"), (-1e150, "-1e+150")]
)
def test_a_score_of_any_size_takes_few_digits(score: float, shown: str) -> None:
    assert tables.shown_score(score) == shown


def test_commands_to_copy_are_quoted_and_a_stopped_study_says_so(hpo_here: Hpo, tmp_path: Path) -> None:
    engine = create_database(parse_url(f"sqlite:///{tmp_path}/hpo.db"))
    submit(engine, make_spec(name="a b"))
    assert "`hpo resume 'a b'` continues it" in hpo_here("stop", "a b").stderr
    assert "`hpo resume 'a b'` continues it" in hpo_here("status", "a b").stdout
    extended = hpo_here("extend", "a b", "--budget", "9").stderr
    assert "It is stopped: requested by `hpo stop`; `hpo resume 'a b'` continues it" in extended
    engine.dispose()
