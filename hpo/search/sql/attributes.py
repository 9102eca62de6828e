"""Attributes of studies and trials, and parameters of trials: JSON text and numbers in Optuna's tables."""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from hpo.search.sql.tables import study_user_attributes, trial_params

BUDGET_KEY = "budget"
STOPPED_KEY = "stopped"
UID_KEY = "uid"
SPLIT_KEY = "split"
"""Of a study: numbers of training, tuning and test images, and of classes."""
SKIPPED_KEY = "skipped_images"
"""Of a study: names of images that could not be decoded and were left out (`data.bad_images = "skip"`)."""
ARTIFACTS_KEY = "artifacts"
"""Of a study: where workers keep pictures, checkpoints and weights; HPO_ARTIFACTS in full, without secrets."""
TROUBLE_KEY = "trouble"
"""Of a trial: the temporary error that it waits out, such as a full disk."""
FOLDER_KEY = "folder"
"""Of a study that was copied: its own folder in the artifact store, where others have one of their name."""
NEXT_START_KEY = "next_start"
"""Of a study: how many of its planned starts (baseline, warm start, grid points, …) were used; absent in studies of
older versions of hpo, which stored all trials in advance.
"""
FIRST_STARTS_KEY = "tried_first"
"""Of a study: the parameters that a warm start tries first."""
CONFIRMATION_KEY = "confirmation"
"""Of a study that confirms another: what is trained again (hpo.search.confirmation)."""
CONFIRMS_KEY = "confirms"
"""Of a trial of such a study: which run it is."""
OUTCOMES_KEY = "outcomes"
"""Of such a trial: what it got under each condition."""
RIGHT_KEY = "hpo:right"
"""Of such a trial: which examples were right under each condition, bits in base64."""
EXCLUDED_KEY = "excluded"
"""Of a trial: why samplers, queries and views leave it out (`hpo exclude`)."""
WHY_KEY = "hpo:why"
"""Of a trial: why it was given back."""
BRACKET_KEY = "bracket"
"""Of a trial: its Hyperband bracket, from 0."""
ROWS_AT_ONCE = 500
"""Rows per statement. psycopg's `executemany` is avoided: a process that is frozen in its pipeline keeps its locks,
since the server considers it active and not idle in a transaction.
"""


def read_study(connection: sa.Connection, study_id: int, key: str) -> Any:
    """A user attribute of a study; None if absent."""
    return read(connection, study_user_attributes, study_id, key)


def read(connection: sa.Connection, table: sa.Table, owner_id: int, key: str) -> Any:
    """An attribute of a trial or study; None if absent."""
    query = sa.select(table.c.value_json).where(_owner(table) == owner_id, table.c.key == key)
    text = connection.scalar(query)
    return None if text is None else json.loads(text)


def write(connection: sa.Connection, table: sa.Table, owner_id: int, values: Mapping[str, Any]) -> None:
    """Sets attributes of a trial or study, replacing older values."""
    write_all(connection, table, [(owner_id, key, value) for key, value in values.items()])


def write_all(connection: sa.Connection, table: sa.Table, values: Sequence[tuple[int, str, Any]]) -> None:
    """Sets attributes of many trials or studies, given as (trial_id or study_id, key, value)."""
    owner = _owner(table).name
    rows = [{owner: owner_id, "key": key, "value_json": json.dumps(value)} for owner_id, key, value in values]
    upsert(connection, table, rows, (owner, "key"))


def _owner(table: sa.Table) -> sa.Column[int]:
    return table.c.study_id if "study_id" in table.c else table.c.trial_id


def upsert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Inserts rows, replacing those with the same key."""
    dialect = importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")  # SQLite's alone starts sooner
    for some in _few_at_once(rows):
        statement = dialect.insert(table).values(some)
        replaced = {name: statement.excluded[name] for name in rows[0] if name not in key}
        connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=replaced))


def insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Inserts rows."""
    for some in _few_at_once(rows):
        connection.execute(table.insert().values(some))


def _few_at_once(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))


def read_params(connection: sa.Connection, trial_id: int) -> dict[str, Any]:
    """The parameters of a trial, as drawn by the sampler."""
    return read_all_params(connection, [trial_id]).get(trial_id, {})


def read_all_params(connection: sa.Connection, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The parameters of these trials, in the order they were written, which is the study file's."""
    p = trial_params.c
    query = sa.select(p.trial_id, p.param_name, p.param_value, p.distribution_json).where(p.trial_id.in_(trial_ids))
    found: dict[int, dict[str, Any]] = {}
    for trial_id, name, value, distribution in connection.execute(query.order_by(p.param_id)):
        found.setdefault(trial_id, {})[name] = _decoded(value, json.loads(distribution))
    return found


def _decoded(value: float, distribution: Mapping[str, Any]) -> Any:
    match distribution["name"]:
        case "CategoricalDistribution":
            return distribution["attributes"]["choices"][int(value)]
        case "IntDistribution":
            return int(value)
    return value
