"""What is asked of trials and studies again and again, as SQL conditions."""

import json

import sqlalchemy as sa

from hpo.search.sql.attributes import STOPPED_KEY, UID_KEY
from hpo.search.sql.tables import PAUSED_KEY, study_user_attributes, trial_user_attributes, trials

StudyKey = tuple[int, str | None]
"""A study's id, and what tells it from another that got the id of one that was deleted."""


def is_stopped(study_id: int) -> sa.ColumnElement[bool]:
    """Whether nothing of the study is given out."""
    return sa.exists().where(study_user_attributes.c.study_id == study_id, study_user_attributes.c.key == STOPPED_KEY)


def is_still_there(key: StudyKey) -> sa.ColumnElement[bool]:
    """Whether the study was not deleted, perhaps with another in its place: SQLite gives ids out again."""
    study_id, uid = key
    if uid is None:  # of an hpo that gave none
        return sa.true()
    a = study_user_attributes.c
    return sa.exists().where(a.study_id == study_id, a.key == UID_KEY, a.value_json == json.dumps(uid))


def is_paused() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` waits with what it has learned so far."""
    return (trials.c.state == "WAITING") & _has_attribute(PAUSED_KEY)


def is_baseline() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` is the baseline."""
    return _has_attribute("baseline")


def is_given_back() -> sa.ColumnElement[bool]:
    """Whether a row of `trials` goes on with what was interrupted."""
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
