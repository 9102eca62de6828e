"""The rules of a study's [stop] section: a score without improvement, one that is good enough, hours."""

import sqlalchemy as sa

from hpo.counted import counted
from hpo.search.sql.conditions import baseline_is_complete
from hpo.search.sql.counts import count_in
from hpo.search.sql.queries import improvements
from hpo.search.sql.stopping import lifted_rules, stop
from hpo.search.sql.storage import database_now
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import trials
from hpo.study_file.spec import StopSpec
from hpo.trial_result import TrialResult


def stop_by_rule(engine: sa.Engine, study: Study) -> None:
    """Stops a search with budget left, if a rule says so that was not lifted by `hpo resume`. What is good enough is
    asked when there is a baseline to compare with.
    """
    rules = study.spec.stop
    if rules == StopSpec():
        return
    with engine.connect() as connection:
        lifted = lifted_rules(connection, study)
        if count_in(connection, study.study_id).finished >= study.budget:
            return
        compared = connection.scalar(sa.select(baseline_is_complete(study.study_id)))
        best = next(reversed(improvements(engine, study.name)), None) if compared else None
        for rule, reason in _reasons(connection, study, rules, best).items():
            if rule not in lifted:
                stop(engine, study, reason, rule=rule)
                return


def _reasons(connection: sa.Connection, study: Study, rules: StopSpec, best: TrialResult | None) -> dict[str, str]:
    """Why the study should stop, by rule."""
    found = {}
    if best is not None and best.score is not None:
        if rules.target is not None and best.score >= rules.target:
            found["target"] = f"trial {best.number} has reached the target of {rules.target:g} (score {best.score:.4f})"
        if rules.patience is not None and _finished_after(connection, study, best) >= rules.patience:
            trials_since = counted(rules.patience, "trial")
            found["patience"] = f"{trials_since} finished without a better score than trial {best.number}'s"
    if rules.max_hours is not None and (hours := _hours(connection, study)) >= rules.max_hours:
        found["max_hours"] = f"its trials have run for {hours:.2g} hours, of {rules.max_hours:g} allowed"
    return found


def _finished_after(connection: sa.Connection, study: Study, best: TrialResult) -> int:
    is_later = trials.c.datetime_complete > best.finished_at
    query = sa.select(sa.func.count()).where(
        trials.c.study_id == study.study_id, trials.c.state.in_(["COMPLETE", "PRUNED"]), is_later
    )
    return int(connection.scalar(query) or 0)


def _hours(connection: sa.Connection, study: Study) -> float:
    """That trials have run until now, in all."""
    t = trials.c
    query = sa.select(t.datetime_start, t.datetime_complete).where(
        t.study_id == study.study_id, t.datetime_start.is_not(None)
    )
    now = connection.scalar(sa.select(sa.type_coerce(database_now(connection), sa.DateTime())))
    ran = [((end or now) - start).total_seconds() for start, end in connection.execute(query)]
    return float(sum(ran)) / 3600
