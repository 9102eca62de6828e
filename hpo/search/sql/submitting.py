"""Submitting a study and extending its budget."""

import json
import shlex
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from hpo import PROTOCOL, __version__
from hpo.doors.parameters import Params
from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BUDGET_KEY, FIRST_STARTS_KEY, NEXT_START_KEY, UID_KEY
from hpo.search.sql.claims import lock_study, read_budget
from hpo.search.sql.fence import new_token
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import PROTOCOL_KEY, SPEC_KEY, Study, find_study, study_names, those_there
from hpo.search.sql.study_note import note_attributes
from hpo.search.sql.tables import studies, study_directions, study_system_attributes, study_user_attributes
from hpo.search.sql.views import trial_results
from hpo.study_file.images import ImageSpec
from hpo.study_file.spec import Spec, flatten

DIFFERENCES_SHOWN = 8
WARM_STARTS = 4
"""How many configurations of an earlier study are tried first."""


def submit(engine: sa.Engine, spec: Spec) -> tuple[Study, bool]:
    """Adds a study to the database in one transaction. Returns it, and whether it is new.

    Idempotent. Raises StudyError if there is a study of this name with another spec.
    """
    try:
        with writing(engine) as connection:
            existing = find_study(connection, spec.name)
            if existing is None:
                return _insert(connection, spec), True
    except IntegrityError:  # another process has just submitted a study of this name
        with engine.connect() as connection:
            existing = find_study(connection, spec.name)
    if existing is None:
        raise StudyError(f"study '{spec.name}' exists, but was not made by hpo; choose another name")
    existing.refuse()
    as_submitted = _as_before(spec, existing.spec).model_copy(update={"budget": existing.spec.budget})
    if as_submitted != existing.spec or spec.budget not in (existing.spec.budget, existing.budget):
        raise StudyError(_difference(_as_before(spec, existing.spec), existing))
    return existing, False


def _as_before(spec: Spec, existing: Spec) -> Spec:
    """The spec without keys that the older hpo that submitted the existing study did not know."""
    if isinstance(spec, ImageSpec) and isinstance(existing, ImageSpec) and existing.data.split_seed is None:
        return spec.model_copy(update={"data": spec.data.model_copy(update={"split_seed": None})})
    return spec


def _insert(connection: sa.Connection, spec: Spec) -> Study:
    first = _earlier_best(connection, spec)
    uid = new_token()
    row = connection.execute(studies.insert().values(study_name=spec.name).returning(studies.c.study_id))
    study_id = int(row.scalar_one())
    connection.execute(study_directions.insert().values(study_id=study_id, direction="MAXIMIZE", objective=0))
    kept = {SPEC_KEY: spec.model_dump(mode="json"), PROTOCOL_KEY: [PROTOCOL, __version__], BUDGET_KEY: spec.budget}
    kept |= {UID_KEY: uid, NEXT_START_KEY: 0, FIRST_STARTS_KEY: first}
    attributes.write(connection, study_user_attributes, study_id, kept)
    shown = {"study:metric_names": ["score"], **note_attributes(spec)}
    attributes.write(connection, study_system_attributes, study_id, shown)
    return Study(study_id, spec, spec.budget, uid=uid, first=tuple(first))


def _earlier_best(connection: sa.Connection, spec: Spec) -> list[Params]:
    """The best configurations of the warm start's study, moved to the nearest values that this study searches."""
    if spec.warm_start is None:
        return []
    there = study_names(connection)
    if spec.warm_start not in there:
        raise StudyError(f"warm_start: no study '{spec.warm_start}'; {those_there(spec.warm_start, there)}")
    if (known := find_study(connection, spec.warm_start)) is not None and known.confirmation is not None:
        raise StudyError(f"warm_start: study '{spec.warm_start}' is a confirmation; name its search")
    found = [spec.search.nearest(params) for params in _best_params(connection, spec.warm_start)]
    if not found:
        raise StudyError(f"warm_start: study '{spec.warm_start}' has no complete trial yet besides its baseline")
    return found


def _best_params(connection: sa.Connection, study: str) -> list[Params]:
    """The best WARM_STARTS configurations of a study, feasible ones first, except its baseline."""
    t = trial_results.c
    query = (
        sa.select(t.params)
        .where(t.study == study, t.state == "complete", t.score.is_not(None), ~t.baseline)
        .order_by(t.feasible.desc(), t.score.desc(), t.number)
        .limit(WARM_STARTS)
    )
    return [json.loads(params) for params in connection.execute(query).scalars()]


def _difference(spec: Spec, existing: Study) -> str:
    """The error message for a spec that differs from the submitted one. Lists the budget last; a budget equal to the
    submitted one is no difference, even if the study was extended since.
    """
    old, new = _by_key(existing.spec), _by_key(spec)
    changed = [key for key in new | old if new.get(key) != old.get(key) and key != "budget"]
    differences = [f"{key} = {_shown(old.get(key))}, not {_shown(new.get(key))}" for key in changed]
    if spec.budget not in (existing.spec.budget, existing.budget):
        differences.append(f"budget = {existing.budget}, not {spec.budget}")
    reordered = "augmentation" if existing.spec.objective == spec.objective else "objective"
    differences = differences or [f"{reordered}.perturbations in another order"]
    advice = f"choose another name (--set name=…) or take the {'changes' if len(differences) > 1 else 'change'} back"
    if not changed and spec.budget > existing.budget:
        advice = f"to add to it: hpo extend {spec.name} --budget {spec.budget}"
    if len(differences) > DIFFERENCES_SHOWN:
        differences[DIFFERENCES_SHOWN:] = [f"and {len(differences) - DIFFERENCES_SHOWN} more"]
    return f"study '{spec.name}' was submitted with {'; '.join(differences)}; {advice}"


def _by_key(spec: Spec) -> dict[str, Any]:
    """The values of the spec by their keys for `--set`."""
    document = spec.model_dump()
    if not isinstance(spec, ImageSpec):
        return flatten(document)
    for section in {"objective", "augmentation"} & document.keys():
        entries = document[section]["perturbations"]
        document[section] = document[section] | {"perturbations": {entry["name"]: entry for entry in entries}}
    return flatten(document)


def _shown(value: Any) -> str:
    return "its default" if value is None else str(value)


def extend(engine: sa.Engine, study: Study, budget: int) -> int:
    """Raises the budget, also of a finished study, and returns by how much.

    Raises StudyError if the new budget is smaller than the old one, or larger than a grid.
    """
    study.refuse()
    if (confirmation := study.confirmation) is not None:
        raise StudyError(
            f"study '{study.name}' confirms '{confirmation.study}'; `hpo confirm {shlex.quote(confirmation.study)} "
            "--seeds N` adds to it"
        )
    if study.spec.sampler.name == "grid" and budget > (points := len(study.spec.search.grid()) + 1):
        raise StudyError(f"study '{study.name}': the grid and the baseline are {points} trials, not {budget}")
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        before = read_budget(connection, study.study_id)
        if budget < before:
            raise StudyError(f"study '{study.name}' has a budget of {before}; --budget must be more, not {budget}")
        kept = {BUDGET_KEY: budget}
        if attributes.read_study(connection, study.study_id, NEXT_START_KEY) is None:
            kept[NEXT_START_KEY] = before  # an older hpo stored that many trials when the study was submitted
        attributes.write(connection, study_user_attributes, study.study_id, kept)
    return budget - before
