"""The SQL views against Optuna's API, and our table definitions against Optuna's own."""

import json
import math
import random

import optuna
import pytest
import sqlalchemy as sa
from conftest import open_fresh, optuna_storage
from optuna.storages._rdb import models

from hpo.errors import InputError
from hpo.search import tables
from hpo.search.storage import open_engine


def test_our_tables_are_a_part_of_optunas() -> None:
    assert models.SCHEMA_VERSION == 12
    for name, table in tables.metadata.tables.items():
        theirs = models.BaseModel.metadata.tables[name]
        for column in table.columns:
            assert column.name in theirs.columns, f"{name}.{column.name}"
            ours, other = column.type, theirs.columns[column.name].type
            if isinstance(ours, sa.Enum):
                assert isinstance(other, sa.Enum)
                assert set(ours.enums) == set(other.enums)
                assert ours.name == other.name


def fill(study: optuna.Study, seed: int) -> None:
    """Trials of every state and kind of value, made with Optuna's own API."""
    generator = random.Random(seed)
    for i in range(12):
        trial = study.ask()
        trial.suggest_int("batch_size", 1, 512, log=True)
        trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)
        if i % 3:
            trial.suggest_int("frozen_layers", 0, 9)
            trial.suggest_categorical("initial_weights", ["pretrained", 'it\'s "quoted"', "ünï", 3, 0.1, None, True])
        trial.set_user_attr("clean_accuracy", generator.random())
        trial.set_user_attr("mean_perturbed_accuracy", generator.random())
        trial.set_user_attr("worker", "hôst:1")
        if i % 2:
            trial.set_constraint("clean_drop", generator.random() - 0.5)
        if i == 7:
            continue  # stays running
        state = generator.choice(["value", "value", "value", "infinite", "pruned", "failed"])
        if state == "pruned":
            trial.report(generator.random(), 1)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif state == "failed":
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, generator.choice([math.inf, -math.inf]) if state == "infinite" else generator.random())
    study.enqueue_trial({"batch_size": 4})


@pytest.mark.parametrize("seed", range(3))
def test_trial_results_is_what_optunas_api_says(engine: sa.Engine, seed: int) -> None:
    for name in ("öne", "two"):
        sampler = optuna.samplers.RandomSampler(seed=seed)
        fill(
            optuna.create_study(
                study_name=name, storage=optuna_storage(engine.url), direction="maximize", sampler=sampler
            ),
            seed,
        )
    optuna.create_study(study_name="empty", storage=optuna_storage(engine.url))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM trial_results ORDER BY study, number")).mappings().all()
        best = connection.execute(sa.text("SELECT * FROM best_configs ORDER BY study, rank")).mappings().all()
    assert {row["study"] for row in rows} == {"öne", "two"}
    for name in ("öne", "two"):
        study = optuna.load_study(study_name=name, storage=optuna_storage(engine.url))
        mine = [row for row in rows if row["study"] == name]
        assert len(mine) == len(study.trials) == 13
        for row, trial in zip(mine, study.trials, strict=True):
            assert row["number"] == trial.number
            assert row["state"] == trial.state.name
            assert row["score"] == trial.value
            assert row["clean_accuracy"] == trial.user_attrs.get("clean_accuracy")
            assert row["perturbed_accuracy"] == trial.user_attrs.get("mean_perturbed_accuracy")
            assert row["worker"] == trial.user_attrs.get("worker")
            assert json.loads(row["params"] or "{}") == trial.params
            for parameter in ("batch_size", "learning_rate", "frozen_layers"):
                assert row[parameter] == trial.params.get(parameter)
            assert (row["started_at"] is None) == (trial.datetime_start is None)
            assert row["feasible"] == int(all(value <= 0 for value in trial.constraints.values()))
        ranked = [row["number"] for row in best if row["study"] == name]
        feasible = [
            t for t in study.trials if t.state.name == "COMPLETE" and all(v <= 0 for v in t.constraints.values())
        ]
        assert ranked == [t.number for t in sorted(feasible, key=lambda t: (-t.value, t.number))]


def test_optunas_own_tools_go_on_working(engine: sa.Engine) -> None:
    study = optuna.create_study(study_name="s", storage=optuna_storage(engine.url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    backend = optuna_storage(engine.url)
    assert backend.get_current_version() == backend.get_head_version()
    backend.upgrade()
    assert len(optuna.load_study(study_name="s", storage=backend).trials) == 3


def test_a_database_without_the_views_is_not_ready_until_they_are_made(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP VIEW best_configs")
        connection.exec_driver_sql("DROP VIEW trial_results")
    with pytest.raises(InputError, match="holds no studies yet"):
        open_engine(engine.url)
    open_fresh(engine.url)
    open_engine(engine.url).dispose()
