"""What a user asks of a running study: a configuration of their own (`hpo try`), and that a trial be left out (`hpo
exclude`).
"""

import json
import shlex

import sqlalchemy as sa

from hpo.doors.parameters import Params
from hpo.errors import InputError, StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import EXCLUDED_KEY, NEXT_START_KEY
from hpo.search.sql.claims import Start, StartOf, add_trial, lock_study, read_budget
from hpo.search.sql.counts import count_in
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import study_user_attributes, trial_user_attributes, trials
from hpo.search.sql.views import trial_results


def try_params(engine: sa.Engine, study: Study, params: Params, start_of: StartOf) -> int:
    """Adds a waiting trial with these parameters, which uses a trial of the budget; the sampler chooses those that are
    left out. Workers take it before they draw others; where nothing has started, the baseline keeps its number 0.
    Returns the trial's number. Raises InputError for parameters that trials cannot have, StudyError if the budget is
    used up or if a trial with all of these was complete before.
    """
    study.refuse()
    study.refuse_confirmation()
    try:
        study.spec.search.check_values(params)
    except ValueError as error:
        raise InputError(f"study '{study.name}': {error}") from None
    if study.spec.sampler.name == "grid":
        raise StudyError(f"study '{study.name}' goes through a grid, and tries all of its points anyway")
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        budget, counts = read_budget(connection, study.study_id), count_in(connection, study.study_id)
        is_first = attributes.read_study(connection, study.study_id, NEXT_START_KEY) == 0
        if counts.budgeted + is_first >= budget:
            raise StudyError(
                f"study '{study.name}': its budget of {budget} is used up or given out; first: "
                f"hpo extend {shlex.quote(study.name)} --budget {budget + 1}"
            )
        if (known := _complete_with(connection, study, params)) is not None:
            raise StudyError(f"study '{study.name}': trial {known} has these parameters; it would be the same again")
        if is_first:
            add_trial(connection, study.study_id, start_of(0))
            attributes.write(connection, study_user_attributes, study.study_id, {NEXT_START_KEY: 1})
        trial_id = add_trial(connection, study.study_id, Start(params))
        return int(connection.execute(sa.select(trials.c.number).where(trials.c.trial_id == trial_id)).scalar_one())


def _complete_with(connection: sa.Connection, study: Study, params: Params) -> int | None:
    """The complete trial with all these parameters, if they leave none out."""
    wanted = {name: value for name, value in study.spec.search.parameters() if isinstance(value, int | float | str)}
    wanted |= params
    if wanted.keys() != {name for name, _ in study.spec.search.parameters()}:
        return None
    t = trial_results.c
    query = sa.select(t.number, t.params).where(t.study == study.name, t.state == "complete", ~t.baseline)
    return next((number for number, text in connection.execute(query) if json.loads(text) == wanted), None)


def exclude(engine: sa.Engine, study: Study, number: int, why: str) -> bool:
    """Has samplers, queries and views leave a finished trial out from now on; it uses its part of the budget all the
    same. Returns False if they do already. Raises StudyError for other trials, and for the baseline.
    """
    study.refuse()
    study.refuse_confirmation()
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        trial_id = _finished_trial(connection, study, number)
        if attributes.read(connection, trial_user_attributes, trial_id, "baseline"):
            raise StudyError(
                f"study '{study.name}': trial {number} is the baseline, which all others are compared with"
            )
        if attributes.read(connection, trial_user_attributes, trial_id, EXCLUDED_KEY) is not None:
            return False
        attributes.write(connection, trial_user_attributes, trial_id, {EXCLUDED_KEY: why})
    return True


def include(engine: sa.Engine, study: Study, number: int) -> bool:
    """Takes `exclude` back. Returns False if the trial was not excluded. Raises StudyError."""
    a = trial_user_attributes.c
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        trial_id = _finished_trial(connection, study, number)
        removed = connection.execute(
            trial_user_attributes.delete().where(a.trial_id == trial_id, a.key == EXCLUDED_KEY)
        )
    return removed.rowcount > 0


def _finished_trial(connection: sa.Connection, study: Study, number: int) -> int:
    query = sa.select(trials.c.trial_id, trials.c.state).where(
        trials.c.study_id == study.study_id, trials.c.number == number
    )
    found = connection.execute(query).one_or_none()
    if found is None:
        raise StudyError(f"study '{study.name}' has no trial {number}")
    if found.state not in ("COMPLETE", "PRUNED"):
        raise StudyError(f"study '{study.name}': trial {number} is not finished")
    return int(found.trial_id)
