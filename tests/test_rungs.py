"""ASHA: who goes on at a rung, who is paused, promoted and resumed, and what is left in the end."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search import claim_next, open_fresh, optuna_storage
from support.studies import make_spec

from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Trial
from hpo.search import asha
from hpo.search.sql import rungs
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.reports import record_step
from hpo.search.sql.stopping import stop
from hpo.search.sql.submitting import submit
from hpo.search.sql.trials_in_memory import History
from hpo.search.worker import work
from hpo.study_file.spec import Spec

EPOCHS = 4


class Ranked(FreeObjective):
    """Trial n scores qualities[n], a little less before the last epoch; its checkpoint is the epoch's number."""

    def __init__(self, spec: Spec, qualities: Sequence[float]) -> None:
        super().__init__(spec)
        self.qualities = qualities
        self.epochs_trained = 0

    def run(self, trial: Trial) -> Iterator[Measurement]:
        done = int(trial.checkpoint or b"0")
        for measurement in list(super().run(trial))[done:]:
            self.epochs_trained += 1
            score = self.qualities[trial.number] - 0.01 * (EPOCHS - measurement.step)
            yield replace(measurement, score=score, checkpoint=str(measurement.step).encode())


def asha_spec(size: int) -> Spec:
    pruner = {"name": "asha", "min_epochs": 1}
    return make_spec(budget=size, pruner=pruner, training={"epochs": EPOCHS}, sampler={"name": "random"})


def checkpoints(folder: Path) -> set[int]:
    """The numbers of the trials that have one."""
    return {int(file.name.split(".")[0].removeprefix("trial-")) for file in folder.rglob("trial-*")}


def search(
    engine: sa.Engine, qualities: Sequence[float], folder: Path
) -> tuple[list[optuna.trial.FrozenTrial], Ranked, list[str]]:
    """The trials of a study with such qualities, in the end; the objective; what the worker said."""
    spec = asha_spec(len(qualities))
    objective = Ranked(spec, qualities)
    said: list[str] = []
    submit(engine, spec)
    work(engine, ["study"], lambda spec, store: objective, "worker", said.append, artifacts=Artifacts(str(folder)))
    trials = optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials
    return trials, objective, said


def test_a_trial_is_left_before_it_is_paused(engine: sa.Engine) -> None:
    """So that a checkpoint of its last epoch is there for whoever goes on with it."""
    spec = asha_spec(4)
    left: dict[int, str] = {}

    class Left(Ranked):
        def run(self, trial: Trial) -> Iterator[Measurement]:
            try:
                yield from super().run(trial)
            except GeneratorExit:
                left[trial.number] = optuna_trial(trial.number).state.name
                raise

    def optuna_trial(number: int) -> optuna.trial.FrozenTrial:
        return optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials[number]

    said: list[str] = []
    submit(engine, spec)
    work(engine, ["study"], lambda spec, store: Left(spec, [0.9, 0.7, 0.5, 0.6]), "worker", said.append)
    paused = {int(line.split()[1]) for line in said if " paused at epoch 1" in line}
    assert paused
    assert left == dict.fromkeys(paused, "RUNNING")


def test_a_trial_that_is_paused_is_promoted_when_it_has_come_to_be_among_the_best(
    engine: sa.Engine, tmp_path: Path
) -> None:
    trials, objective, said = search(engine, [0.9, 0.7, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1], tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["PRUNED", "COMPLETE"] + ["PRUNED"] * 4
    paused, promoted = (
        said.index("trial 3 paused at epoch 1: score 0.5700"),
        said.index("trial 3 complete at epoch 4: score 0.6000"),
    )
    assert paused < promoted
    assert any(line.startswith("trial 3 goes on: ") for line in said[paused:promoted])
    assert any(line.startswith("trial 6 paused") for line in said[paused:promoted]), "six at the rung let two go on"
    assert objective.epochs_trained == 3 * EPOCHS + 5, "a promoted trial resumes from its checkpoint"
    assert sorted(trials[3].intermediate_values) == [1, 2, 3, 4]
    assert [trials[n].value for n in (2, 4)] == [pytest.approx(0.47), pytest.approx(0.37)], "their scores at the rung"
    assert trials[2].user_attrs["images"] == 1000
    assert not checkpoints(tmp_path)


def test_the_baseline_is_no_rival_of_other_trials(engine: sa.Engine, tmp_path: Path) -> None:
    trials, _, _ = search(engine, [0.9, 0.1, 0.2], tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3


def test_few_trials_are_kept_paused_and_the_worst_are_pruned(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rungs, "MAX_PAUSED", 2)
    kept: list[int] = []

    class Watched(Ranked):
        def run(self, trial: Trial) -> Iterator[Measurement]:
            kept.append(len(checkpoints(tmp_path) - {trial.number}))
            yield from super().run(trial)

    spec = asha_spec(10)
    objective = Watched(spec, [0.9 - 0.05 * number for number in range(10)])
    submit(engine, spec)
    work(engine, ["study"], lambda spec, store: objective, "worker", print, artifacts=Artifacts(str(tmp_path)))
    study = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    assert max(kept) == 2
    assert [trial.state.name for trial in study.trials[:4]] == ["COMPLETE"] * 4, "the baseline and the best third"
    assert all(trial.value is not None for trial in study.trials)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=9, unique=True))
def test_the_best_at_a_rung_are_completed_in_whatever_order_they_come(
    tmp_path_factory: pytest.TempPathFactory, qualities: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("asha")
    engine = open_fresh(f"sqlite:///{folder}/hpo.db")
    trials, _, _ = search(engine, [0.5, *qualities], folder)
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    by_score = sorted(trials[1:], key=lambda trial: -trial.intermediate_values[1])
    assert all(trial.state.name == "COMPLETE" for trial in by_score[: max(1, len(by_score) // 3)])
    engine.dispose()


def test_paused_trials_wait_while_a_study_is_stopped_and_tell_samplers_what_they_know(engine: sa.Engine) -> None:
    spec = asha_spec(5)
    study, _ = submit(engine, spec)
    objective = Ranked(spec, [0.9, 0.7, 0.6, 0.5, 0.4])
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("trial 3 paused"):
            stop(engine, study, "enough")

    work(engine, ["study"], lambda spec, store: objective, "worker", say)
    assert "study study is stopped: enough" in said[-1]
    counts = count(engine, study.study_id)
    assert (counts.complete, counts.waiting, counts.paused) == (2, 2, 2)
    assert rungs.promote(engine, study.key, "w", 2) is None
    assert rungs.prune_paused(engine, study.study_id) == []
    seen = History(engine, study.study_id, "study").study().get_trials()
    assert [(trial.number, trial.state.name, len(trial.intermediate_values)) for trial in seen] == [
        (0, "COMPLETE", 4),
        (1, "COMPLETE", 4),
        (2, "PRUNED", 1),
        (3, "PRUNED", 1),
    ]
    assert all(trial.params for trial in seen)


def test_two_workers_promote_a_trial_once(engine: sa.Engine) -> None:
    spec = asha_spec(9)
    study, _ = submit(engine, spec)
    objective = Ranked(spec, [0.9, 0.7, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.1])

    def say(text: str) -> None:
        if text.startswith("trial 6 paused"):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        work(engine, ["study"], lambda spec, store: objective, "worker", say)
    together = threading.Barrier(2)
    claims: list[Any] = []

    def promote(name: str) -> None:
        together.wait()
        claims.append(rungs.promote(engine, study.key, name, 3))

    threads = [threading.Thread(target=promote, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (claim,) = [claim for claim in claims if claim is not None]
    assert claim.number == 3
    assert claim.start.continues == (3,)
    assert claim.start.fixed_params["initial_weights"] == "pretrained"


def test_a_pause_is_idempotent(engine: sa.Engine) -> None:
    study, _ = submit(engine, asha_spec(3))
    claim = claim_next(engine, study, "worker")
    assert claim is not None
    measured = Measurement(1, 0.5, attributes={"images": 7})
    record_step(engine, claim.hold, measured, [])
    for _ in range(2):
        assert rungs.pause(engine, study.study_id, claim.hold, measured) == []
    assert count(engine, study.study_id) == Counts(waiting=2, paused=1), "and the baseline"


def test_rungs_lie_in_the_first_half_of_the_epochs() -> None:
    def of(epochs: int, **pruner: Any) -> list[int]:
        return asha.rung_steps(make_spec(training={"epochs": epochs}, pruner={"name": "asha", **pruner}))

    assert of(1) == []
    assert of(3) == [1]
    assert of(4) == [2]
    assert of(12) == [4]
    assert of(30, min_epochs=1) == [1, 3, 9]
    assert of(8, min_epochs=1, reduction_factor=2) == [1, 2, 4]
    assert of(8, min_epochs=5) == []


def test_the_brackets_of_a_hyperband_begin_later_and_later_and_more_trials_are_in_the_first() -> None:
    spec = make_spec(training={"epochs": 27}, pruner={"name": "hyperband", "min_epochs": 1})
    assert asha.brackets(spec) == 3
    assert [asha.rung_steps(spec, bracket) for bracket in range(3)] == [[1, 3, 9], [3, 9], [9]]
    drawn = [asha.bracket_of(spec, number) for number in range(300)]
    sizes = [drawn.count(bracket) for bracket in range(3)]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 30
    assert asha.bracket_of(make_spec(pruner={"name": "asha"}), 1) is None


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_bad_trials_end_early_and_the_budget_is_used(engine: sa.Engine, tmp_path: Path, name: str) -> None:
    qualities = [0.9, 0.8, 0.7, 0.6, 0.65, 0.1, 0.2, 0.75, 0.3, 0.72, 0.15, 0.4, 0.78, 0.35, 0.2, 0.1]
    spec = make_spec(
        budget=16, pruner={"name": name, "min_epochs": 1}, training={"epochs": EPOCHS}, sampler={"name": "random"}
    )
    submit(engine, spec)
    store = Artifacts(str(tmp_path))
    work(engine, ["study"], lambda spec, store: Ranked(spec, qualities), "worker", print, artifacts=store)
    trials = optuna.load_study(study_name="study", storage=optuna_storage(engine.url)).trials
    states = [trial.state.name for trial in trials]
    assert len(trials) == 16
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert states[:2] == ["COMPLETE"] * 2
    pruned = [trial.number for trial in trials if trial.state.name == "PRUNED"]
    if name == "hyperband":
        assert {trial.user_attrs["bracket"] for trial in trials} == {0, 1}
        assert all(trials[n].user_attrs["bracket"] == 0 for n in pruned), (
            "the second bracket has no rung in four epochs"
        )
    else:
        assert pruned == [5, 6, 8, 10, 11, 13, 14, 15], "below the median of four complete ones"
