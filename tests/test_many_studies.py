"""One worker and many studies: trouble with one is no trouble for the others, and none takes all workers or memory."""

import gc
import heapq
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from large_study import fill
from support.commands import Hpo
from support.search import claim_next, optuna_storage, run, states
from support.studies import make_spec
from support.waiting import write_waiting_study

from hpo.cli.watching import LATEST, look
from hpo.doors.objective import Trial
from hpo.errors import DataError, MachineError, StudyError
from hpo.search import worker
from hpo.search.shares import Shares
from hpo.search.sql import attributes, claims
from hpo.search.sql.counts import Counts, count
from hpo.search.sql.open_studies import RECOUNT_SECS, Finished, open_studies
from hpo.search.sql.queries import all_trials
from hpo.search.sql.status import status
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend, submit
from hpo.search.sql.tables import metadata, study_user_attributes, trials
from hpo.search.worker import work
from hpo.study_file.spec import Spec


@pytest.fixture
def engine(sqlite_engine: sa.Engine) -> sa.Engine:
    """How a worker goes about several studies does not depend on the kind of database."""
    return sqlite_engine


def spec_of(**changes: object) -> Spec:
    """Drawn at random, which costs no time."""
    return make_spec(sampler={"name": "random"}, **changes)


def without_images_for(*names: str) -> Any:
    def load(spec: Spec, store: Any) -> FreeObjective:
        if spec.name in names:
            raise DataError(f"data.archive: {spec.name}.zip does not exist")
        return FreeObjective(spec)

    return load


def test_a_study_that_cannot_be_worked_on_here_is_skipped_and_said_once(engine: sa.Engine) -> None:
    for name in ("broken", "fine", "fine-too"):
        submit(engine, spec_of(name=name, budget=3))
    said: list[str] = []
    with pytest.raises(DataError, match=r"broken\.zip does not exist"):  # in the end, when nothing else is left
        work(engine, [], without_images_for("broken"), "worker", said.append)
    for study in find_studies(engine):
        expected = 0 if study.name == "broken" else 3
        assert count(engine, study.study_id).finished == expected
    assert [line for line in said if "broken" in line] == [
        "study broken cannot be worked on here for now: data.archive: broken.zip does not exist"
    ]


def test_a_study_that_was_skipped_is_tried_again(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SKIP_SECS", 0.2)
    for name in ("broken", "fine"):
        submit(engine, spec_of(name=name, budget=12))
    missing = ["broken"]

    class Mending(FreeObjective):
        def run(self, trial: Trial) -> Any:
            if trial.number == 8:
                missing.clear()
            time.sleep(0.05)
            return super().run(trial)

    def load(spec: Spec, store: Any) -> FreeObjective:
        if spec.name in missing:
            raise DataError("no images")
        return Mending(spec)

    said: list[str] = []
    work(engine, [], load, "worker", said.append)
    assert all(count(engine, study.study_id).finished == 12 for study in find_studies(engine))
    assert sum("cannot be worked on" in line for line in said) == 1


def test_the_only_study_that_was_asked_for_is_refused_at_once(engine: sa.Engine) -> None:
    for name in ("broken", "fine"):
        submit(engine, spec_of(name=name))
    with pytest.raises(DataError):
        work(engine, ["broken"], without_images_for("broken"), "worker", lambda text: None, forever=True)


def test_a_new_study_that_got_the_id_of_a_deleted_one_is_worked_on_as_it_says(engine: sa.Engine) -> None:
    """SQLite gives ids out again."""
    seeds: list[int] = []

    class Seeded(FreeObjective):
        def __init__(self, spec: Spec, store: Any) -> None:
            super().__init__(spec)
            self.seed = spec.seed

        def run(self, trial: Trial) -> Any:
            seeds.append(self.seed)
            if trial.number == 2 and self.seed == 1:
                optuna.delete_study(study_name="a", storage=optuna_storage(engine.url))
                submit(engine, spec_of(name="a", seed=7, budget=3))
            return super().run(trial)

    submit(engine, spec_of(name="a", seed=1, budget=3))
    said: list[str] = []
    work(engine, [], Seeded, "worker", said.append)
    assert seeds == [1, 1, 1, 7, 7, 7]
    assert [trial.state for trial in all_trials(engine, "a")] == ["complete"] * 3
    assert len([line for line in said if line.startswith("trial dropped")]) == 1


def test_a_worker_keeps_few_studies_in_memory(engine: sa.Engine) -> None:
    alive: list[Any] = []

    class Large(FreeObjective):
        def run(self, trial: Trial) -> Any:
            gc.collect()
            assert sum(objective() is not None for objective in alive) <= worker.MAX_READY
            return super().run(trial)

    def load(spec: Spec, store: Any) -> FreeObjective:
        objective = Large(spec)
        alive.append(weakref.ref(objective))
        return objective

    for number in range(4):
        submit(engine, spec_of(name=f"study-{number}", budget=2))
    work(engine, [], load, "worker", lambda text: None)
    assert len(alive) == 4
    assert all(count(engine, study.study_id).finished == 2 for study in find_studies(engine))


def test_workers_share_themselves_between_studies(engine: sa.Engine) -> None:
    """A worker goes where the fewest are, and stays where it is as long as that is even."""
    first, _ = submit(engine, spec_of(name="first", budget=3))
    second, _ = submit(engine, spec_of(name="second", budget=3))
    for _ in range(2):
        claim_next(engine, first, "others")
    taken: list[str] = []

    class Telling(FreeObjective):
        def __init__(self, spec: Spec, store: Any) -> None:
            super().__init__(spec)
            self.name = spec.name

        def run(self, trial: Trial) -> Any:
            taken.append(self.name)
            if len(taken) == 4:
                raise KeyboardInterrupt
            return super().run(trial)

    with pytest.raises(KeyboardInterrupt):
        work(engine, [], Telling, "worker", lambda text: None)
    assert taken == ["second", "second", "second", "first"]
    assert count(engine, second.study_id).finished == 3


def test_a_study_of_another_version_is_read_and_not_worked_on(engine: sa.Engine) -> None:
    """With a key that this version does not know, though the protocol is the same."""
    newer, _ = submit(engine, spec_of(name="newer", budget=3))
    submit(engine, spec_of(name="fine", budget=3))
    spec = newer.spec.model_dump(mode="json")
    spec["training"]["new_key"] = 1
    spec["objective"]["perturbations"][0]["another"] = [1]
    with engine.begin() as connection:
        attributes.write(connection, study_user_attributes, newer.study_id, {"spec": spec})
    said: list[str] = []
    work(engine, [], FreeObjective, "worker", said.append)
    found, fine = find_studies(engine)
    assert (found.spec, found.budget) == (newer.spec, 3)
    assert "does not know" in (found.refused or "")
    assert "training.new_key" in (found.refused or "")
    assert status(engine, found).as_json()["waiting"] == 3
    assert count(engine, fine.study_id).finished == 3
    assert sum("newer" in line for line in said) == 1
    for operation in (lambda: extend(engine, found, 5), lambda: submit(engine, newer.spec)):
        with pytest.raises(StudyError, match="this version does not know"):
            operation()


def test_a_study_that_cannot_be_read_hides_no_other(engine: sa.Engine) -> None:
    damaged, _ = submit(engine, spec_of(name="damaged", budget=3))
    submit(engine, spec_of(name="fine", budget=3))
    with engine.begin() as connection:
        spec = damaged.spec.model_dump(mode="json") | {"budget": "many"}
        attributes.write(connection, study_user_attributes, damaged.study_id, {"spec": spec})
    said: list[str] = []
    assert [study.name for study in find_studies(engine, say=said.append)] == ["fine"]
    assert len(said) == 1
    assert "'damaged' cannot be read by hpo" in said[0]
    assert "budget" in said[0]
    with pytest.raises(StudyError, match="'damaged' cannot be read"):
        find_studies(engine, ["damaged"])


def test_a_device_that_fails_is_the_machines_affair(engine: sa.Engine) -> None:
    """The trial goes on elsewhere, the worker ends to be started again, and nothing is held against the study."""
    failed: list[int] = []

    def load(spec: Spec, store: Any) -> FreeObjective:
        def fail(params: Any) -> None:
            if not failed:
                failed.append(1)
                raise MachineError("this machine's device failed: CUDA error: an illegal memory access")

        return FreeObjective(spec, fault=fail)

    study, _ = submit(engine, spec_of(budget=3))
    with pytest.raises(MachineError):
        work(engine, [], load, "worker", lambda text: None)
    work(engine, [], load, "worker", lambda text: None)
    found = optuna.load_study(study_name="study", storage=optuna_storage(engine.url))
    assert sorted(states(found)) == ["COMPLETE"] * 3 + ["FAIL"]
    assert status(engine, study).failures == []
    given_back = next(trial for trial in found.trials if trial.state.name == "FAIL")
    assert given_back.user_attrs["interruption"].startswith("its worker's device failed")


def test_a_configuration_that_breaks_device_after_device_counts_as_failed(engine: sa.Engine) -> None:
    def load(spec: Spec, store: Any) -> FreeObjective:
        def fail(params: Any) -> None:
            if params["batch_size"] == 64 and params["augmentation_strength"]:
                raise MachineError("CUDA error: an illegal memory access")

        return FreeObjective(spec, fault=fail)

    submit(engine, spec_of(budget=5, max_failed_share=1.0, search=dict(spec_of().search) | {"batch_size": 64}))
    for _ in range(claims.MAX_DEATHS):
        with pytest.raises(MachineError):
            work(engine, [], load, "worker", lambda text: None)
    failures = [trial for trial in all_trials(engine, "study") if trial.failure]
    assert len(failures) == 1
    assert "workers in a row died in the same step of this configuration" in (failures[0].failure or "")
    assert "illegal memory access" in (failures[0].failure or "")


def test_a_baseline_out_of_memory_fails_and_keeps_the_constraint(engine: sa.Engine) -> None:
    """Complete with the worst score it would switch `max_clean_drop` off for all others."""
    lacking: list[int] = []

    def need_memory(params: Any) -> None:
        if params["augmentation_strength"] == 0 and len(lacking) < 2:
            lacking.append(1)
            raise MemoryError("64 images do not fit")

    spec = spec_of(budget=5)
    objective = spec.objective.model_copy(update={"max_clean_drop": 0.001})
    submit(engine, spec.model_copy(update={"objective": objective}))
    work(engine, [], lambda given, store: FreeObjective(given, fault=need_memory), "worker", lambda text: None)
    trials = all_trials(engine, "study")
    assert sum(trial.failure is not None for trial in trials) == 2
    baseline = [trial for trial in trials if trial.baseline and trial.state == "complete"]
    assert len(baseline) == 1
    assert baseline[0].clean_accuracy is not None
    assert {trial.feasible for trial in trials if trial.state == "complete"} == {True, False}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full disk")
def test_a_worker_whose_log_is_on_a_full_disk_goes_on(hpo_here: Hpo, tmp_path: Path, waiting: dict[str, str]) -> None:
    assert hpo_here("submit", write_waiting_study(tmp_path, budget=2, steps=1), **waiting).returncode == 0
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hpo", "worker"]
        ran = subprocess.run(
            command, cwd=tmp_path, env=os.environ | waiting, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert "Traceback" not in ran.stderr
    assert json.loads(hpo_here("status", "--json").stdout)[0]["finished"] == 2


def test_a_study_of_before_a_value_was_refused_can_be_read(engine: sa.Engine) -> None:
    study, _ = submit(engine, spec_of(budget=3))
    with engine.begin() as connection:
        spec = study.spec.model_dump(mode="json")
        spec["search"]["batch_size"] = 1
        attributes.write(connection, study_user_attributes, study.study_id, {"spec": spec})
    assert find_studies(engine, ["study"])[0].spec.search.batch_size == 1


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("hours", [(1.0, 1.0), (0.1, 1.0), (1.0, 0.2)])
def test_studies_share_workers_by_their_priority(engine: sa.Engine, workers: int, hours: tuple[float, float]) -> None:
    """Simulated: what each worker knows of the others is how many trials were running."""
    usual, _ = submit(engine, spec_of(name="usual", budget=9))
    urgent, _ = submit(engine, spec_of(name="urgent", budget=9, priority=3))
    lasting = {usual.key: 3600 * hours[0], urgent.key: 3600 * hours[1]}
    running, spent = dict.fromkeys(lasting, 0), dict.fromkeys(lasting, 0.0)
    every = [Shares() for _ in range(workers)]
    busy: list[tuple[float, int, Study, list[tuple[Study, Counts]]]] = []

    def begin(now: float, number: int) -> None:
        todo = [(study, Counts(running=running[study.key])) for study in (usual, urgent)]
        taken = every[number].in_turn(todo, ())[0]
        running[taken.key] += 1
        heapq.heappush(busy, (now + lasting[taken.key] * (0.9 + 0.02 * (len(spent) + number)), number, taken, todo))

    for number in range(workers):
        begin(float(number), number)
    assert workers == 1 or set(running.values()) == {1} or workers > 2, "both progress from the beginning"
    for _ in range(3000):
        now, number, taken, todo = heapq.heappop(busy)
        running[taken.key] -= 1
        spent[taken.key] += lasting[taken.key]
        every[number].note(todo, taken, lasting[taken.key])
        begin(now, number)
    assert 2.4 < spent[urgent.key] / spent[usual.key] < 3.6


def test_no_more_trials_run_at_once_than_a_study_allows(engine: sa.Engine) -> None:
    study, _ = submit(engine, spec_of(name="narrow", budget=6, max_parallel=2))
    for _ in range(2):
        assert claim_next(engine, study, "others", most=2) is not None
    assert claim_next(engine, study, "one too many", most=2) is None
    assert count(engine, study.study_id).running == 2


def test_finished_studies_are_not_counted_again_unless_they_change(engine: sa.Engine) -> None:
    for name in ("one", "two"):
        run(engine, make_spec(name=name, budget=2))
    memory = Finished()
    assert open_studies(engine, [], memory) == []
    with counting(engine) as statements:
        assert open_studies(engine, [], memory) == []
    assert len(statements) == 1, "of the budgets alone"
    (one,) = find_studies(engine, ["one"])
    extend(engine, one, 3)
    (found,) = open_studies(engine, [], memory)
    assert (found[0].name, found[1].finished) == ("one", 2)
    delete_a_trial(engine, "two")  # as another tool may, without a word
    assert [study.name for study, _ in open_studies(engine, [], memory)] == ["one"]
    memory.counted_at -= RECOUNT_SECS
    assert [study.name for study, _ in open_studies(engine, [], memory)] == ["one", "two"]


def test_status_of_many_studies_shows_the_open_and_the_latest(engine: sa.Engine) -> None:
    for number in range(LATEST + 3):
        fill(engine, f"study-{number}", 1)
    submit(engine, make_spec(name="open"))
    overview = look(engine, [])
    assert overview.left_out == 3
    names = [record.study.name for record in overview.records]
    assert names == [*(f"study-{number}" for number in range(3, LATEST + 3)), "open"]
    assert len(look(engine, [], everything=True).records) == LATEST + 4
    assert look(engine, ["study-0"]).records[0].is_done


@contextmanager
def counting(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that the block sends."""
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


def delete_a_trial(engine: sa.Engine, name: str) -> None:
    (study,) = find_studies(engine, [name])
    with engine.begin() as connection:
        first = sa.select(sa.func.min(trials.c.trial_id)).where(trials.c.study_id == study.study_id).scalar_subquery()
        trial_id = connection.scalar(sa.select(first))
        for table in metadata.sorted_tables[::-1]:
            if "trial_id" in table.c:
                connection.execute(table.delete().where(table.c.trial_id == trial_id))
