"""What is done to a study as a whole, also to one that hpo did not make: it is deleted, or gets another name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import ARTIFACTS_KEY, UID_KEY
from hpo.search.sql.claims import lock_study
from hpo.search.sql.counts import count_in
from hpo.search.sql.fence import new_token
from hpo.search.sql.heartbeats import reap
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import SPEC_KEY
from hpo.search.sql.tables import (
    metadata,
    studies,
    study_system_attributes,
    study_user_attributes,
    trial_system_attributes,
    trials,
)
from hpo.study_file.messages import explain
from hpo.study_file.reading import KEPT, read_kept_spec
from hpo.study_file.spec import Spec

TABLES_OF_TRIALS = [table for table in metadata.sorted_tables if "trial_id" in table.c and table is not trials]
TABLES_OF_STUDIES = [table for table in metadata.sorted_tables if "study_id" in table.c and table is not studies]
LONGEST_NAME = 512  # characters in Optuna's table


@dataclass(frozen=True)
class Kept:
    """What a study has in an artifact store. location: as its workers said, None if none has; folder: of its
    checkpoints and weights, None if hpo did not make it; numbers: of the trials that may have a checkpoint; pictures:
    names of artifacts.
    """

    study: str
    location: str | None
    folder: str | None
    numbers: list[int]
    pictures: list[str]


def delete(engine: sa.Engine, study_id: int) -> Kept | None:
    """Removes a study with its trials, whoever runs some, in one transaction; None if there is none.

    A worker that writes later finds its trial gone.
    """
    of_study = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    with writing(engine) as connection:
        connection.execute(of_study.with_for_update()).all()  # as workers do: first their trial, then the study
        kept = _locked(connection, study_id)
        if kept is None:
            return None
        connection.execute(of_study.with_for_update()).all()  # those that were added before the study was locked
        for table in TABLES_OF_TRIALS:
            connection.execute(table.delete().where(table.c.trial_id.in_(of_study)))
        for table in (*TABLES_OF_STUDIES, studies):
            connection.execute(table.delete().where(table.c.study_id == study_id))
    return kept


def rename(engine: sa.Engine, study_id: int, name: str, move: Callable[[Kept, Spec], None]) -> Kept | None:
    """Gives a study another name, in its spec too; everything else stays as it is. What it has kept so far; None if
    there is no such study.

    move: is told what the study keeps and the spec with the new name, by which its workers will look for it; the name
    stays as it was if it raises. Raises StudyError for a name that is taken or not allowed, and while trials of the
    study are running: their workers know it by its name.
    """
    _give_back_what_the_dead_had(engine, study_id)
    with writing(engine) as connection:
        kept = _locked(connection, study_id)
        if kept is None:
            return None
        spec = attributes.read_study(connection, study_id, SPEC_KEY)
        if spec is not None:
            if running := count_in(connection, study_id).running:
                raise StudyError(
                    f"study '{kept.study}': {running} of its trials are running, and their workers know it by its "
                    f"name; `hpo stop {kept.study}`, and rename it when nothing runs any more"
                )
            renamed = _renamed(kept.study, spec, name)
            anew = {SPEC_KEY: spec | {"name": name}, UID_KEY: new_token()}  # whoever has it set up does so anew
            attributes.write(connection, study_user_attributes, study_id, anew)
        elif len(name) > LONGEST_NAME:
            raise StudyError(f"name: must have at most {LONGEST_NAME} characters, not {len(name)}")
        try:
            connection.execute(studies.update().where(studies.c.study_id == study_id).values(study_name=name))
        except IntegrityError:
            raise StudyError(f"there is a study '{name}' already; choose another name") from None
        if spec is not None and renamed.folder_name != kept.folder:
            move(kept, renamed)
    return kept


def _locked(connection: sa.Connection, study_id: int) -> Kept | None:
    try:
        lock_study(connection, study_id)
    except StudyError:  # it is no longer there
        return None
    return _kept(connection, study_id)


def _give_back_what_the_dead_had(engine: sa.Engine, study_id: int) -> None:
    """Of a study that hpo made: of others nobody beats."""
    with engine.connect() as connection:
        ours = attributes.read_study(connection, study_id, SPEC_KEY) is not None
    if ours:
        reap(engine, study_id)


def _renamed(study: str, spec: dict[str, Any], name: str) -> Spec:
    """Raises StudyError."""
    try:
        kept = read_kept_spec(json.dumps(spec))
    except ValidationError:
        raise StudyError(f"study '{study}' was submitted by another version of hpo; rename it with that one") from None
    try:
        return type(kept).model_validate_json(json.dumps(spec | {"name": name}), context=KEPT)
    except ValidationError as error:
        raise StudyError(explain(error, type(kept))) from None


def folder_of(name: str) -> str:
    """Where a study of this name has its checkpoints and weights, whatever else its spec says."""
    named: dict[str, Any] = {"name": name}
    return Spec.model_construct(**named).folder_name


def _kept(connection: sa.Connection, study_id: int) -> Kept | None:
    name = connection.scalar(sa.select(studies.c.study_name).where(studies.c.study_id == study_id))
    if name is None:
        return None
    spec = attributes.read_study(connection, study_id, SPEC_KEY)
    left_open = trials.c.state.not_in(["COMPLETE", "PRUNED"]) & trials.c.datetime_start.is_not(None)
    numbers = connection.execute(sa.select(trials.c.number).where(trials.c.study_id == study_id, left_open)).scalars()
    return Kept(
        study=name,
        location=None if spec is None else attributes.read_study(connection, study_id, ARTIFACTS_KEY),
        folder=None if spec is None else folder_of(spec["name"]),
        numbers=list(numbers),
        pictures=_pictures(connection, study_id),
    )


def _pictures(connection: sa.Connection, study_id: int) -> list[str]:
    """What was uploaded to the study and to its trials, by hpo or in the page."""
    of_study, of_trial = study_system_attributes.c, trial_system_attributes.c
    queries = (
        sa.select(of_study.value_json).where(
            of_study.study_id == study_id,
            of_study.key.startswith("artifacts:") | of_study.key.startswith("dashboard:artifacts:"),
        ),
        sa.select(of_trial.value_json)
        .join(trials, trials.c.trial_id == of_trial.trial_id)
        .where(trials.c.study_id == study_id, of_trial.key.startswith("artifacts:")),
    )
    texts = [json.loads(text) for query in queries for text in connection.execute(query).scalars()]
    return [json.loads(text)["artifact_id"] for text in texts if text and json.loads(text)]


def locations(engine: sa.Engine) -> dict[str, list[str]]:
    """Where workers keep their files, and the names of the studies that they keep there, the first submitted first."""
    spec, location = study_user_attributes.alias(), study_user_attributes.alias()
    query = (
        sa.select(studies.c.study_name, location.c.value_json)
        .join(location, (location.c.study_id == studies.c.study_id) & (location.c.key == ARTIFACTS_KEY))
        .join(spec, (spec.c.study_id == studies.c.study_id) & (spec.c.key == SPEC_KEY))
        .order_by(studies.c.study_id)
    )
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for name, text in connection.execute(query):
            found.setdefault(json.loads(text), []).append(name)
    return found
