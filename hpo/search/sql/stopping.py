"""Stopping a study, by request or because its trials fail, and resuming it."""

import json
from typing import Any

import sqlalchemy as sa

from hpo.errors import reason_in
from hpo.search.sql import attributes
from hpo.search.sql.attributes import STOPPED_KEY
from hpo.search.sql.claims import lock_study
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import study_user_attributes, trial_user_attributes, trials

FORGIVEN_KEY = "failures_forgiven"
LIFTED_KEY = "lifted_stop_rules"
FAILURES_ALWAYS_ALLOWED = 2


def stop(engine: sa.Engine, study: Study, reason: str, failing: bool = False, rule: str | None = None) -> bool:
    """Stops the study: no trial can be claimed any more, and workers give back those that run. rule: the one of
    its [stop] section, if that is why. Returns False if it was stopped before.
    """
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        if attributes.read_study(connection, study.study_id, STOPPED_KEY) is not None:
            return False
        value = {"reason": reason, "failing": failing, "rule": rule}
        attributes.write(connection, study_user_attributes, study.study_id, {STOPPED_KEY: value})
    return True


def resume(engine: sa.Engine, study: Study) -> bool:
    """Resumes a stopped study; failures so far no longer count, nor does the rule that stopped it. Returns False if it
    was not stopped.
    """
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        kept: dict[str, Any] = {FORGIVEN_KEY: _count_failures(connection, study)}
        stopped = attributes.read_study(connection, study.study_id, STOPPED_KEY) or {}
        if rule := stopped.get("rule"):
            kept[LIFTED_KEY] = [*lifted_rules(connection, study), rule]
        attributes.write(connection, study_user_attributes, study.study_id, kept)
        removed = connection.execute(
            study_user_attributes.delete().where(
                study_user_attributes.c.study_id == study.study_id, study_user_attributes.c.key == STOPPED_KEY
            )
        )
    return removed.rowcount > 0


def lifted_rules(connection: sa.Connection, study: Study) -> list[str]:
    """Rules of its [stop] section that no longer apply, since it was resumed after they had stopped it."""
    return list(attributes.read_study(connection, study.study_id, LIFTED_KEY) or [])


def stop_if_failing(engine: sa.Engine, study: Study) -> None:
    """Stops a study if more trials have failed than its spec allows, and stores the reason."""
    with engine.connect() as connection:
        forgiven = attributes.read_study(connection, study.study_id, FORGIVEN_KEY) or 0
        failed = _count_failures(connection, study) - forgiven
        if failed <= max(FAILURES_ALWAYS_ALLOWED, study.spec.max_failed_share * study.budget):
            return
        ((number, text),) = latest_failures(connection, study, limit=1)
    reason = (
        f"{failed} trials failed, more than max_failed_share = {study.spec.max_failed_share:g} of the budget "
        f"allows; the last, trial {number}: {reason_in(text)}"
    )
    stop(engine, study, reason, failing=True)


def _count_failures(connection: sa.Connection, study: Study) -> int:
    return int(connection.scalar(_failures(study, sa.func.count())) or 0)


def latest_failures(connection: sa.Connection, study: Study, limit: int) -> list[tuple[int, str]]:
    """(trial number, traceback or message) of failed trials, latest first."""
    query = _failures(study, trials.c.number, trial_user_attributes.c.value_json)
    rows = connection.execute(query.order_by(trials.c.number.desc()).limit(limit))
    return [(number, json.loads(text)) for number, text in rows]


def _failures(study: Study, *columns: Any) -> sa.Select[Any]:
    failure = trial_user_attributes.c
    return (
        sa.select(*columns)
        .select_from(trials.join(trial_user_attributes, failure.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study.study_id, failure.key == "failure")
    )
