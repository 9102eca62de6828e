"""Deletes and renames studies, also those that hpo did not create."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from hpo.errors import StudyError
from hpo.search.confirmation import SUFFIX
from hpo.search.sql import attributes
from hpo.search.sql.attributes import ARTIFACTS_KEY, CONFIRMATION_KEY, FOLDER_KEY, UID_KEY
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
MAX_NAME_CHARACTERS = 512  # in Optuna's table


@dataclass(frozen=True)
class Kept:
    """A study's files in the artifact store. location: of the store, None if no worker has reported it; folder: of
    checkpoints and shared files, None if hpo did not create the study; numbers: of trials that may have a checkpoint;
    shared: names of files for all workers; pictures: names of artifacts.
    """

    study: str
    location: str | None
    folder: str | None
    numbers: list[int]
    shared: list[str]
    pictures: list[str]


def delete(engine: sa.Engine, study_id: int) -> list[Kept]:
    """Deletes a study with all trials, including running ones, and its confirmation, in one transaction. Returns their
    files, the study's first; nothing if there is no such study.

    A worker that writes later finds its trial deleted.
    """
    with writing(engine) as connection:
        kept = [_deleted(connection, each) for each in (study_id, confirmation_of(connection, study_id)) if each]
    return [files for files in kept if files is not None]


def _deleted(connection: sa.Connection, study_id: int) -> Kept | None:
    of_study = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    connection.execute(
        of_study.with_for_update()
    ).all()  # in the same order as workers: first the trial, then the study
    kept = _locked(connection, study_id)
    if kept is None:
        return None
    connection.execute(of_study.with_for_update()).all()  # those that were added before the study was locked
    for table in TABLES_OF_TRIALS:
        connection.execute(table.delete().where(table.c.trial_id.in_(of_study)))
    for table in (*TABLES_OF_STUDIES, studies):
        connection.execute(table.delete().where(table.c.study_id == study_id))
    return kept


def confirmation_of(connection: sa.Connection, study_id: int) -> int | None:
    """The study_id of the confirmation of this study, if it has one."""
    uid = attributes.read_study(connection, study_id, UID_KEY)
    a = study_user_attributes.c
    links = connection.execute(sa.select(a.study_id, a.value_json).where(a.key == CONFIRMATION_KEY))
    return next((other for other, text in links if uid is not None and json.loads(text)["uid"] == uid), None)


def rename(engine: sa.Engine, study_id: int, name: str, move: Callable[[Kept, Spec], None]) -> list[Kept]:
    """Renames a study, also in its spec, and its confirmation with it. Returns their files under the old names, the
    study's first; nothing if there is no such study.

    move: called with these files and the renamed spec, in whose folder workers will look for them; if it raises,
    nothing is renamed. Raises StudyError if the name is taken or not allowed, while trials are running, since their
    workers know the study by name, and for a confirmation.
    """
    with engine.connect() as connection:
        if (link := attributes.read_study(connection, study_id, CONFIRMATION_KEY)) is not None:
            raise StudyError(f"this study confirms '{link['study']}': rename that one, and it is renamed too")
        confirmation = confirmation_of(connection, study_id)
    renamed = []
    for each in (study_id, confirmation):
        if each is not None:
            _reap_if_ours(engine, each)
    with writing(engine) as connection:
        kept = _rename(connection, study_id, name, move)
        if kept is not None:
            renamed.append(kept)
        if kept is not None and confirmation is not None:
            link = attributes.read_study(connection, confirmation, CONFIRMATION_KEY)
            link |= {"study": name, "uid": attributes.read_study(connection, study_id, UID_KEY)}
            attributes.write(connection, study_user_attributes, confirmation, {CONFIRMATION_KEY: link})
            also = _rename(connection, confirmation, name + SUFFIX, move)
            renamed += [also] if also is not None else []
    return renamed


def _rename(connection: sa.Connection, study_id: int, name: str, move: Callable[[Kept, Spec], None]) -> Kept | None:
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
        anew = {SPEC_KEY: spec | {"name": name}, UID_KEY: new_token()}  # workers that have set it up do so again
        attributes.write(connection, study_user_attributes, study_id, anew)
    elif len(name) > MAX_NAME_CHARACTERS:
        raise StudyError(f"name: must have at most {MAX_NAME_CHARACTERS} characters, not {len(name)}")
    try:
        connection.execute(studies.update().where(studies.c.study_id == study_id).values(study_name=name))
    except IntegrityError:
        raise StudyError(f"there is a study '{name}' already; choose another name") from None
    if attributes.read_study(connection, study_id, FOLDER_KEY) is not None:
        return replace(kept, folder=None)  # its files stay where they are
    if spec is not None and renamed.folder_name != kept.folder:
        move(kept, renamed)
    return kept


def _locked(connection: sa.Connection, study_id: int) -> Kept | None:
    try:
        lock_study(connection, study_id)
    except StudyError:  # it was deleted
        return None
    return kept_files(connection, study_id)


def _reap_if_ours(engine: sa.Engine, study_id: int) -> None:
    """Gives back trials of dead workers, except in studies that hpo did not create, which have no heartbeats."""
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
    """The folder for checkpoints and weights of a study of this name."""
    named: dict[str, Any] = {"name": name}
    return Spec.model_construct(**named).folder_name


def kept_files(connection: sa.Connection, study_id: int) -> Kept | None:
    """None if there is no such study."""
    name = connection.scalar(sa.select(studies.c.study_name).where(studies.c.study_id == study_id))
    if name is None:
        return None
    spec = attributes.read_study(connection, study_id, SPEC_KEY)
    left_open = trials.c.state.not_in(["COMPLETE", "PRUNED"]) & trials.c.datetime_start.is_not(None)
    numbers = connection.execute(sa.select(trials.c.number).where(trials.c.study_id == study_id, left_open)).scalars()
    return Kept(
        study=name,
        location=None if spec is None else attributes.read_study(connection, study_id, ARTIFACTS_KEY),
        folder=None
        if spec is None
        else attributes.read_study(connection, study_id, FOLDER_KEY) or folder_of(spec["name"]),
        numbers=list(numbers),
        shared=[] if spec is None else _shared(spec),
        pictures=_pictures(connection, study_id),
    )


def _shared(spec: dict[str, Any]) -> list[str]:
    try:
        return read_kept_spec(json.dumps(spec)).shared_files
    except ValidationError:  # of another version of hpo
        return []


def _pictures(connection: sa.Connection, study_id: int) -> list[str]:
    """Artifacts of the study and its trials, uploaded by hpo or in the dashboard."""
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
    """Locations where workers keep files, each with the names of its studies in the order they were submitted."""
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
