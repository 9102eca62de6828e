"""Copies a study's rows from one database into another: trials, attributes, values, spec, and what it confirms.

The copy is a study of its own: it has another uid, so that no worker takes it for the original, and a folder of its own
in the artifact store. Trials that are running are given back in it, as if their workers had been lost.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import ARTIFACTS_KEY, CONFIRMATION_KEY, FOLDER_KEY, UID_KEY
from hpo.search.sql.claims import give_back_in
from hpo.search.sql.fence import TOKEN_KEY, new_token
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import SPEC_KEY
from hpo.search.sql.tables import (
    metadata,
    studies,
    study_user_attributes,
    trial_heartbeats,
    trials,
)

OF_STUDY = [table for table in metadata.sorted_tables if "study_id" in table.c and table not in (studies, trials)]
OF_TRIAL = [
    table for table in metadata.sorted_tables if "trial_id" in table.c and table not in (trials, trial_heartbeats)
]
PICTURE_PREFIXES = ("artifacts:", "dashboard:artifacts:")
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A study as rows by table, without their own ids; trials in the order in which they were added."""

    trials: Sequence[Row]
    others: Mapping[str, Sequence[Row]]

    def attribute(self, key: str) -> Any:
        """A user attribute of the study; None if absent."""
        of_study = self.others[study_user_attributes.name]
        return next((json.loads(row["value_json"]) for row in of_study if row["key"] == key), None)


@dataclass(frozen=True)
class Place:
    """Where a copy goes. location: of its artifact store; folder: its own there; pictures: the new ids of artifacts, by
    the old ones.
    """

    name: str
    location: str
    folder: str
    pictures: Mapping[str, str]


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction in which nothing changes, whatever workers write meanwhile."""
    if engine.dialect.name == "sqlite":
        with writing(engine) as connection:
            yield connection
        return
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        yield connection


def check_free(engine: sa.Engine, name: str) -> None:
    """Raises StudyError if a study has this name."""
    with engine.connect() as connection:
        _check_free(connection, name)


def _check_free(connection: sa.Connection, name: str) -> None:
    if connection.scalar(sa.select(studies.c.study_id).where(studies.c.study_name == name)) is not None:
        raise StudyError(f"there is a study '{name}' already; choose another name: --name NAME")


def read_rows(connection: sa.Connection, study_id: int) -> Rows:
    """All that the database has of a study."""
    of_study = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    found = connection.execute(sa.select(trials).where(trials.c.study_id == study_id).order_by(trials.c.trial_id))
    own = [dict(row) for row in found.mappings()]
    others = {}
    for table in (*OF_STUDY, *OF_TRIAL):
        chosen = table.c.study_id == study_id if table in OF_STUDY else table.c.trial_id.in_(of_study)
        columns = [column for column in table.c if not column.primary_key]
        rows = connection.execute(sa.select(*columns).where(chosen).order_by(*table.primary_key)).mappings()
        others[table.name] = [dict(row) for row in rows]
    return Rows(own, others)


def insert_rows(connection: sa.Connection, rows: Rows, place: Place, confirms: tuple[str, str] | None = None) -> str:
    """Adds the copy, in the caller's transaction, and returns its uid. confirms: of a confirmation's copy, name and uid
    of the copied search. Raises StudyError if the name is taken.
    """
    _check_free(connection, place.name)
    study_id = int(
        connection.execute(studies.insert().values(study_name=place.name).returning(studies.c.study_id)).scalar_one()
    )
    new_ids = _insert_trials(connection, rows.trials, study_id)
    for table in OF_STUDY:
        _insert(connection, table, [{**row, "study_id": study_id} for row in _moved(rows.others[table.name], place)])
    for table in OF_TRIAL:
        moved = _moved(rows.others[table.name], place)
        kept = [{**row, "trial_id": new_ids[row["trial_id"]]} for row in moved if row.get("key") != TOKEN_KEY]
        _insert(connection, table, kept)
    uid = new_token()
    changed: Row = {UID_KEY: uid, SPEC_KEY: rows.attribute(SPEC_KEY) | {"name": place.name}}
    changed |= {ARTIFACTS_KEY: place.location, FOLDER_KEY: place.folder}
    if confirms is not None:
        study, of = confirms
        changed[CONFIRMATION_KEY] = rows.attribute(CONFIRMATION_KEY) | {"study": study, "uid": of}
    attributes.write(connection, study_user_attributes, study_id, changed)
    for row in rows.trials:
        if row["state"] == "RUNNING":
            give_back_in(connection, new_ids[row["trial_id"]], "stopped", "it was running when the study was copied")
    return uid


def _insert_trials(connection: sa.Connection, rows: Sequence[Row], study_id: int) -> dict[int, int]:
    """The new trial_id of each, by the old one."""
    new_ids: dict[int, int] = {}
    for start in range(0, len(rows), attributes.ROWS_AT_ONCE):
        some = rows[start : start + attributes.ROWS_AT_ONCE]
        values = [
            {key: value for key, value in row.items() if key != "trial_id"} | {"study_id": study_id} for row in some
        ]
        added = connection.execute(trials.insert().values(values).returning(trials.c.trial_id, trials.c.number))
        by_number = {number: trial_id for trial_id, number in added}
        new_ids |= {row["trial_id"]: by_number[row["number"]] for row in some}
    return new_ids


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), attributes.ROWS_AT_ONCE):
        connection.execute(table.insert().values(list(rows[start : start + attributes.ROWS_AT_ONCE])))


def _moved(rows: Sequence[Row], place: Place) -> Iterator[Row]:
    """The rows with the new ids of their artifacts."""
    for row in rows:
        key = str(row.get("key", ""))
        prefix = next((prefix for prefix in PICTURE_PREFIXES if key.startswith(prefix)), None)
        new = place.pictures.get(key.removeprefix(prefix)) if prefix else None
        if prefix is None or new is None:
            yield row
            continue
        about = json.loads(row["value_json"])
        about = json.dumps(json.loads(about) | {"artifact_id": new}) if isinstance(about, str) else about
        yield {**row, "key": f"{prefix}{new}", "value_json": json.dumps(about)}
