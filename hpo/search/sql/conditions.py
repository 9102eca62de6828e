"""SQL conditions on trials and studies that several queries use."""

import json

import sqlalchemy as sa

from hpo.search.sql.attributes import EXCLUDED_KEY, STOPPED_KEY, UID_KEY
from hpo.search.sql.tables import PAUSED_KEY, study_user_attributes, trial_user_attributes, trials

StudyKey = tuple[int, str | None]
"""A study's id, and its uid, which differs if SQLite reuses the id of a deleted study."""


def is_stopped(study_id: int) -> sa.ColumnElement[bool]:
    """Whether the study is stopped, so that none of its trials can be claimed."""
    return sa.exists().where(study_user_attributes.c.study_id == study_id, study_user_attributes.c.key == STOPPED_KEY)


def is_still_there(key: StudyKey) -> sa.ColumnElement[bool]:
    """Whether the study still exists, and not another one with the same id: SQLite reuses ids."""
    study_id, uid = key
    if uid is None:  # submitted by an older hpo
        return sa.true()
    a = study_user_attributes.c
    return sa.exists().where(a.study_id == study_id, a.key == UID_KEY, a.value_json == json.dumps(uid))


def is_paused() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` is a paused trial, which waits with its checkpoint."""
    return (trials.c.state == "WAITING") & _has_attribute(PAUSED_KEY)


def is_baseline() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` is the baseline."""
    return _has_attribute("baseline")


def is_given_back() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` continues an interrupted trial."""
    return _has_attribute("continues")


def _has_attribute(key: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(trial_user_attributes.c.trial_id == trials.c.trial_id, trial_user_attributes.c.key == key)


def baseline_is_complete(study_id: int) -> sa.ColumnElement[bool]:
    """Whether the study's baseline is complete."""
    other = trials.alias()
    return sa.exists().where(
        other.c.study_id == study_id,
        other.c.state == "COMPLETE",
        trial_user_attributes.c.trial_id == other.c.trial_id,
        trial_user_attributes.c.key == "baseline",
    )


def excluded_trials(connection: sa.Connection, study_id: int) -> set[int]:
    """Numbers of the trials that were excluded by a user."""
    query = (
        sa.select(trials.c.number)
        .join(trial_user_attributes, trial_user_attributes.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id, trial_user_attributes.c.key == EXCLUDED_KEY)
    )
    return set(connection.execute(query).scalars())
