"""Configurations that a user asks for, beside those of the sampler: `hpo try`."""

import json
import shlex

import sqlalchemy as sa

from hpo.doors.parameters import Params
from hpo.errors import InputError, StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import NEXT_START_KEY
from hpo.search.sql.claims import Start, StartOf, add_trial, lock_study, read_budget
from hpo.search.sql.counts import count_in
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import study_user_attributes, trials
from hpo.search.sql.views import trial_results


def try_params(engine: sa.Engine, study: Study, params: Params, start_of: StartOf) -> int:
    """Adds a waiting trial with these parameters, which uses a trial of the budget; the sampler chooses those that are
    left out. Workers take it before they draw others; where nothing has started, the baseline keeps its number 0.
    Returns the trial's number. Raises InputError for parameters that trials
    cannot have, StudyError if the budget is used up or if a trial with all of these was complete before.
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
