"""Changes what a submitted study searches, and when it stops: `hpo extend --set`."""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from hpo.errors import StudyError, nearest
from hpo.search.sql import attributes
from hpo.search.sql.attributes import UID_KEY, read_all_params
from hpo.search.sql.claims import lock_study
from hpo.search.sql.fence import new_token
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import SPEC_KEY, Study
from hpo.search.sql.study_note import note_attributes
from hpo.search.sql.tables import study_system_attributes, study_user_attributes, trials
from hpo.study_file.messages import explain
from hpo.study_file.overrides import apply_override
from hpo.study_file.reading import KEPT
from hpo.study_file.spec import Spec

CHANGEABLE = ("search", "stop", "priority", "max_parallel", "max_failed_share")
"""Keys that say nothing of what a trial with given parameters is."""


def respecify(engine: sa.Engine, study: Study, overrides: Sequence[str]) -> tuple[int, int]:
    """Applies `key=value` overrides to a study, whose workers set it up anew. How many of its finished trials lie
    within what is searched then, and how many there are: samplers leave the others out. Raises SpecError, StudyError.
    """
    study.refuse()
    study.refuse_confirmation()
    spec = _changed(study, overrides)
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        kept = {SPEC_KEY: spec.model_dump(mode="json"), UID_KEY: new_token()}
        attributes.write(connection, study_user_attributes, study.study_id, kept)
        attributes.write(connection, study_system_attributes, study.study_id, note_attributes(spec))
        of_study = trials.c.study_id == study.study_id
        finished = sa.select(trials.c.trial_id).where(of_study, trials.c.state.in_(["COMPLETE", "PRUNED"]))
        params = read_all_params(connection, list(connection.execute(finished).scalars()))
    return sum(spec.search.contains(each) for each in params.values()), len(params)


def _changed(study: Study, overrides: Sequence[str]) -> Spec:
    before = study.spec
    document: dict[str, Any] = json.loads(json.dumps(before.model_dump(mode="json")))
    for override in overrides:
        key = override.partition("=")[0].partition(".")[0].strip()
        if key not in CHANGEABLE:
            raise StudyError(
                f"--set {override}: of a study that was submitted, these can be changed: {', '.join(CHANGEABLE)}."
                f"{nearest(key, CHANGEABLE)}"
            )
        apply_override(document, override)
    try:
        type(before).model_validate(document)  # as a new study: what is refused today is not allowed now
        spec = type(before).model_validate(document, context=KEPT)
    except ValidationError as error:
        raise StudyError(f"study '{study.name}': {explain(error, type(before))}") from None
    had, has = ({name for name, _ in each.search.parameters()} for each in (before, spec))
    if had != has:
        names = ", ".join(sorted(had ^ has))
        raise StudyError(f"study '{study.name}': its trials have other parameters ({names}); submit another study")
    if spec.search != before.search and before.sampler.name == "grid":
        raise StudyError(f"study '{study.name}' goes through a grid, which is planned when it is submitted")
    return spec
