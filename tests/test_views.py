"""The SQL views against Optuna's API, and our table definitions against Optuna's own."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from support.search import open_fresh, optuna_storage

from hpo.errors import InputError, StorageError
from hpo.search.sql import tables
from hpo.search.sql.storage import create_database, open_engine, views_version
from hpo.search.sql.views import VIEWS_VERSION, view_statements


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
    keys = [
        "parts",
        "clean_accuracy",
        "mean_perturbed_accuracy",
        "gaussian-noise",
        "pixel-recolor",
        "worker",
        "baseline",
    ]
    violation = draw(st.none() | numbers)
    return create_trial(
        state=state,
        value=draw(st.floats(allow_nan=False)) if state == TrialState.COMPLETE else None,
        params={name: value for name, (value, _) in params.items()},
        distributions={name: distribution for name, (_, distribution) in params.items()},
        user_attrs=draw(st.dictionaries(st.sampled_from(keys), attributes, max_size=4)),
        system_attrs={} if violation is None else {"constraints:clean_drop": violation},
        intermediate_values=draw(st.dictionaries(st.integers(0, 5), st.floats(), max_size=2)),
    )


def read(engine: sa.Engine, query: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def check_row(row: dict[str, Any], trial: FrozenTrial) -> None:
    """Column by column. What is no number is no accuracy, and JSON has no NaN and no infinity."""
    assert row["number"] == trial.number
    assert row["state"] == trial.state.name.lower()
    assert row["score"] == trial.value
    parts = trial.user_attrs.get("parts")
    for column, key in ACCURACIES.items():
        value = trial.user_attrs.get(key)
        if column != "perturbed_accuracy" and "parts" in trial.user_attrs:
            part = "clean" if column == "clean_accuracy" else key
            value = parts.get(part) if isinstance(parts, dict) and is_json(parts) else None
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


def is_json(value: object) -> bool:
    """Python writes NaN and infinity into JSON, which has none."""
    return not any(word in json.dumps(value) for word in ("NaN", "Infinity"))


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
        assert views_version(connection) == 99


def test_the_version_is_raised_with_every_change_of_the_views() -> None:
    views = repr([view_statements(dialect) for dialect in ("sqlite", "postgresql")])
    assert (VIEWS_VERSION, hashlib.sha256(views.encode()).hexdigest()[:8]) == (7, "27216580")


OLD_VIEWS = (
    "DROP VIEW best_configs",
    "DROP VIEW trial_results",
    "CREATE VIEW trial_results AS SELECT study_name AS study, 'COMPLETE' AS state, 1 AS feasible FROM studies",
    "CREATE VIEW best_configs AS SELECT 1 AS rank, * FROM trial_results",
)


def test_flags_and_states_are_spelled_as_everywhere_else(engine: sa.Engine) -> None:
    study = optuna.create_study(study_name="s", storage=optuna_storage(engine.url))
    study.add_trial(create_trial(value=1.0))
    (row,) = read(engine, "SELECT state, baseline, feasible FROM trial_results WHERE feasible AND NOT baseline")
    is_server = engine.dialect.name == "postgresql"
    assert row["state"] == "complete"
    assert [repr(row["baseline"]), repr(row["feasible"])] == (["False", "True"] if is_server else ["0", "1"])
    assert len(read(engine, "SELECT * FROM best_configs WHERE state = 'complete'")) == 1


def test_readers_of_postgresql_keep_what_they_were_given(postgresql_url: str) -> None:
    """A view whose columns change must be dropped, and a new one would be the reader's no more."""
    engine = open_fresh(postgresql_url)
    execute(engine, *OLD_VIEWS, "COMMENT ON VIEW trial_results IS 'ask Ann''s team: 100 %s; hpo views 2'")
    roles = [f'"{engine.url.database} {name}"' for name in ("owner", "reader", "passes on", "one column", "refused")]
    owner, reader, passes_on, one_column, refused = roles
    given = (
        *(f"CREATE ROLE {role}" for role in roles),
        f"GRANT ALL ON SCHEMA public TO {owner}",
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {refused}",
        f"GRANT SELECT ON trial_results, best_configs TO {reader}",
        f"GRANT SELECT ON best_configs TO {passes_on} WITH GRANT OPTION",
        f"GRANT SELECT (study, state), UPDATE (feasible) ON trial_results TO {one_column}",
        "GRANT SELECT (study) ON best_configs TO PUBLIC",
        "COMMENT ON VIEW best_configs IS 'those worth having'",
        "COMMENT ON COLUMN best_configs.rank IS 'from 1'",
        "ALTER VIEW best_configs SET (security_barrier = true)",
        f"ALTER VIEW best_configs OWNER TO {owner}",
    )
    execute(engine, *given)
    before = rights(engine)
    assert len(before) > 12
    try:
        open_engine(engine.url).dispose()
        assert [row for row in rights(engine) if row not in before] == []
        assert [row for row in before if row not in rights(engine)] == []
        (comment,) = read(engine, "SELECT obj_description('trial_results'::regclass) AS text")
        assert comment["text"] == f"ask Ann's team: 100 %s;  hpo views {VIEWS_VERSION}".replace(";  ", "; ")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET ROLE {reader}")
            assert connection.execute(sa.text("SELECT pixel_recolor, feasible FROM trial_results")).all() == []
            connection.rollback()
            connection.exec_driver_sql(f"SET ROLE {refused}")
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                connection.execute(sa.text("SELECT * FROM trial_results"))
    finally:  # roles are the server's, not the database's
        execute(engine, *(f"DROP OWNED BY {role} CASCADE" for role in roles), *(f"DROP ROLE {role}" for role in roles))


def rights(engine: sa.Engine) -> list[dict[str, Any]]:
    """Owners, options, rights and comments of both views, but for the comment that holds their version."""
    query = """
        SELECT c.relname, '' AS col, 'owner' AS what, pg_get_userbyid(c.relowner)::text AS who,
            c.reloptions::text AS more FROM pg_class c WHERE c.relname IN ('trial_results', 'best_configs')
        UNION ALL SELECT table_name, '', privilege_type, grantee, is_grantable FROM information_schema.table_privileges
            WHERE table_name IN ('trial_results', 'best_configs')
        UNION ALL SELECT table_name, column_name, privilege_type, grantee, is_grantable
            FROM information_schema.column_privileges
            WHERE table_name IN ('trial_results', 'best_configs') AND column_name IN ('study', 'state', 'feasible')
        UNION ALL SELECT relname, 'comment', objsubid::text, '', description
            FROM pg_description d JOIN pg_class c ON c.oid = d.objoid WHERE c.relname = 'best_configs'"""
    return read(engine, query)


def test_many_that_find_older_views_at_once_make_them_once(postgresql_url: str) -> None:
    engine = open_fresh(postgresql_url)
    role = f"{engine.url.database}_reader"
    execute(engine, *OLD_VIEWS, f"CREATE ROLE {role}", f"GRANT SELECT ON best_configs TO {role}")
    try:
        with ThreadPoolExecutor(8) as pool:
            for opened in pool.map(lambda i: (open_engine, create_database)[i % 2](engine.url), range(8)):
                assert read(opened, "SELECT pixel_recolor FROM best_configs") == []
                opened.dispose()
        assert {"relname": "best_configs", "col": "", "what": "SELECT", "who": role, "more": "NO"} in rights(engine)
    finally:
        execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_views_that_others_depend_on_are_left_as_they_are(postgresql_url: str) -> None:
    engine = open_fresh(postgresql_url)
    execute(engine, *OLD_VIEWS, "CREATE VIEW ours AS SELECT study FROM best_configs")
    for opened in (open_engine, open_fresh):
        with pytest.raises(StorageError, match="view ours depends on view best_configs; drop those, run `hpo init`"):
            opened(engine.url)
    assert len(read(engine, "SELECT * FROM ours")) == 0
    execute(engine, "DROP VIEW ours")
    open_engine(engine.url).dispose()


def test_one_who_may_only_read_is_told_who_can_replace_older_views(postgresql_url: str) -> None:
    engine = open_fresh(postgresql_url)
    role = f"{engine.url.database}_reader"
    rights = f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    execute(engine, *OLD_VIEWS, f"CREATE ROLE {role} LOGIN", rights)
    try:
        with pytest.raises(StorageError, match="this user may not replace them"):
            open_engine(engine.url.set(username=role))
        open_engine(engine.url).dispose()
        open_engine(engine.url.set(username=role)).dispose()
    finally:
        execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def execute(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
