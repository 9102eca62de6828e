"""The SQL views against Optuna's API, and our table definitions against Optuna's own."""

import hashlib
import json
import math
from datetime import datetime
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from conftest import open_fresh, optuna_storage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import InputError
from hpo.search import tables
from hpo.search.storage import _views_version, open_engine
from hpo.search.views import VIEWS_VERSION, view_statements


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


finite = st.floats(-1e300, 1e300).map(lambda value: value if abs(value) > 1e-300 else 0.0)
numbers = finite | st.sampled_from([math.nan, math.inf, -math.inf])
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
choices = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | numbers | st.text()
attributes = st.recursive(choices, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
own_params = {
    "batch_size": st.builds(lambda value: (value, IntDistribution(1, 512, log=True)), st.integers(1, 512)),
    "learning_rate": st.builds(lambda value: (value, FloatDistribution(1e-5, 1.0, log=True)), st.floats(1e-5, 1.0)),
    "frozen_layers": st.builds(lambda value: (value, IntDistribution(0, 9)), st.integers(0, 9)),
}


@st.composite
def any_param(draw: st.DrawFn) -> tuple[Any, BaseDistribution]:
    """A value of a space of any kind."""
    if draw(st.booleans()):
        options = draw(st.lists(choices, min_size=1, max_size=4, unique_by=repr))
        return draw(st.sampled_from(options)), CategoricalDistribution(options)
    low = draw(st.floats(-1e12, 1e12))
    return low, FloatDistribution(low, low + draw(st.floats(0, 1e12)))


@st.composite
def trials(draw: st.DrawFn) -> FrozenTrial:
    """A trial in any state, as Optuna's API makes it; also with what hpo itself never writes."""
    params = draw(st.fixed_dictionaries({}, optional=own_params))
    others = draw(st.lists(st.tuples(names, st.uuids(), any_param()), max_size=3))
    params |= {f"{text}{unique}": param for text, unique, param in others}  # one kind of parameter to a name
    state = draw(st.sampled_from(list(TrialState)))
    keys = ["clean_accuracy", "mean_perturbed_accuracy", "gaussian-noise", "pixel-recolor", "worker", "baseline"]
    violation = draw(st.none() | numbers)
    return create_trial(
        state=state,
        value=draw(st.floats(allow_nan=False)) if state == TrialState.COMPLETE else None,
        params={name: value for name, (value, _) in params.items()},
        distributions={name: distribution for name, (_, distribution) in params.items()},
        user_attrs=draw(st.dictionaries(st.sampled_from(keys), attributes, max_size=4)),
        system_attrs={} if violation is None else {tables.CONSTRAINT_KEY: violation},
        intermediate_values=draw(st.dictionaries(st.integers(0, 5), st.floats(), max_size=2)),
    )


def read(engine: sa.Engine, query: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def check_row(row: dict[str, Any], trial: FrozenTrial) -> None:
    """Column by column. What is no number is no accuracy, and JSON has no NaN and no infinity."""
    assert row["number"] == trial.number
    assert row["state"] == trial.state.name
    assert row["score"] == trial.value
    for column, key in ACCURACIES.items():
        value = trial.user_attrs.get(key)
        assert row[column] == (value if is_number(value) else None)
    for name in ("batch_size", "learning_rate", "frozen_layers", "augmentation_strength"):
        assert row[name] == trial.params.get(name)
        assert isinstance(row[name], type(trial.params.get(name)))
    read = json.loads(row["params"] or "{}")
    assert read.keys() == trial.params.keys()
    for name, value in trial.params.items():
        expected = [value, value.replace("\0", "\ufffd")] if isinstance(value, str) else [value]
        assert read[name] in expected or (isinstance(value, float) and not math.isfinite(value))
    for column in ("worker", "initial_weights"):
        value = trial.user_attrs.get("worker") if column == "worker" else trial.params.get("initial_weights")
        assert row[column] == (value if isinstance(value, str) else None)
    for column, time in (("started_at", trial.datetime_start), ("finished_at", trial.datetime_complete)):
        given = row[column]
        assert (datetime.fromisoformat(given) if isinstance(given, str) else given) == time
    assert row["baseline"] == ("baseline" in trial.user_attrs)
    assert row["feasible"] == is_feasible(trial)


def is_number(value: object) -> bool:
    """Apart from the outermost powers of ten, which hpo never writes either."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (value == 0 or 1e-307 < abs(value) < 1e307)
    )


def is_feasible(trial: FrozenTrial) -> bool:
    """NaN and infinity, which hpo never writes, do not make a trial infeasible."""
    return not any(is_number(value) and value > 0 for value in trial.constraints.values())


PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking through a database takes minutes
ACCURACIES = {
    "clean_accuracy": "clean_accuracy",
    "perturbed_accuracy": "mean_perturbed_accuracy",
    "gaussian_noise": "gaussian-noise",
    "pixel_recolor": "pixel-recolor",
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25, phases=PHASES)
@given(name=names, drawn=st.lists(trials(), max_size=6))
def test_trial_results_is_what_optunas_api_says(engine: sa.Engine, name: str, drawn: list[FrozenTrial]) -> None:
    storage = optuna_storage(engine.url)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    try:
        study.add_trials(drawn)
        rows = read(engine, "SELECT * FROM trial_results ORDER BY number")
        assert {row["study"] for row in rows} <= {name}
        assert len(rows) == len(drawn)
        for row, trial in zip(rows, study.trials, strict=True):
            check_row(row, trial)
        ranked = [row["number"] for row in read(engine, "SELECT * FROM best_configs ORDER BY rank")]
        feasible = [t for t in study.trials if t.state.name == "COMPLETE" and is_feasible(t)]
        assert ranked == [t.number for t in sorted(feasible, key=lambda t: (-t.value, t.number))]
    finally:
        optuna.delete_study(study_name=name, storage=storage)
    assert read(engine, "SELECT * FROM trial_results") == [], "a study deleted meanwhile"


def test_optunas_own_tools_go_on_working(engine: sa.Engine) -> None:
    study = optuna.create_study(study_name="s", storage=optuna_storage(engine.url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    backend = optuna_storage(engine.url)
    assert backend.get_current_version() == backend.get_head_version()
    backend.upgrade()
    assert len(optuna.load_study(study_name="s", storage=backend).trials) == 3


def test_a_database_without_the_views_is_not_ready_until_they_are_made(engine: sa.Engine) -> None:
    execute(engine, "DROP VIEW best_configs", "DROP VIEW trial_results")
    with pytest.raises(InputError, match="holds no studies of hpo yet"):
        open_engine(engine.url)
    open_fresh(engine.url)
    open_engine(engine.url).dispose()


def test_older_views_are_brought_up_to_date_by_whoever_may(engine: sa.Engine) -> None:
    old = "CREATE VIEW trial_results AS SELECT s.study_name AS study FROM studies s"
    execute(engine, "DROP VIEW best_configs", "DROP VIEW trial_results", old)
    open_engine(engine.url).dispose()
    assert read(engine, "SELECT pixel_recolor FROM best_configs") == []


def test_the_views_of_a_newer_hpo_are_left_alone(engine: sa.Engine) -> None:
    newer = [
        statement.replace(f"hpo views {VIEWS_VERSION}", "hpo views 99")
        for statement in view_statements(engine.dialect.name)
    ]
    execute(engine, *newer)
    open_fresh(engine.url)
    with engine.connect() as connection:
        assert _views_version(connection) == 99


def test_the_version_is_raised_with_every_change_of_the_views() -> None:
    views = repr([view_statements(dialect) for dialect in ("sqlite", "postgresql")])
    assert (VIEWS_VERSION, hashlib.sha256(views.encode()).hexdigest()[:8]) == (2, "3fd947c5")


def execute(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
