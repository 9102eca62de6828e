"""Adds a confirmation to the database, or what another asks of it beyond that, and finds it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from hpo import PROTOCOL, __version__
from hpo.errors import StudyError
from hpo.search.confirmation import SUFFIX, Confirmation
from hpo.search.sql import attributes
from hpo.search.sql.attributes import (
    ARTIFACTS_KEY,
    BUDGET_KEY,
    CONFIRMATION_KEY,
    FIRST_STARTS_KEY,
    FOLDER_KEY,
    NEXT_START_KEY,
    SPLIT_KEY,
    UID_KEY,
)
from hpo.search.sql.claims import lock_study
from hpo.search.sql.fence import new_token
from hpo.search.sql.joining import FINGERPRINTS_KEY
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import PROTOCOL_KEY, SPEC_KEY, Study, find_study
from hpo.search.sql.study_note import note_of_confirmation
from hpo.search.sql.tables import studies, study_directions, study_system_attributes, study_user_attributes
from hpo.study_file.spec import StopSpec
from hpo.trial_result import TrialResult

LONGEST_NAME = 100 - len(SUFFIX)
COPIED = (FINGERPRINTS_KEY, SPLIT_KEY, ARTIFACTS_KEY)
"""What workers must have alike, as those of the search had it."""


def find_confirmation(engine: sa.Engine, study: Study) -> Study | None:
    """The confirmation of a search; None if there is none. Raises StudyError if another study has its name."""
    with engine.connect() as connection:
        return _find(connection, study)


def _find(connection: sa.Connection, study: Study) -> Study | None:
    found = find_study(connection, study.name + SUFFIX)
    if found is not None and (found.confirmation is None or found.confirmation.uid != study.uid):
        raise StudyError(f"study '{found.name}' belongs to another study '{study.name}'; delete it or rename it first")
    return found


def confirm(
    engine: sa.Engine,
    study: Study,
    baseline: TrialResult,
    candidates: Sequence[TrialResult],
    seeds: int,
    test_sets: Sequence[str],
) -> Study:
    """The confirmation of a search, with whatever runs of these candidates, their controls and the baseline it lacked,
    on so many seeds that the search did not use. One transaction; asking again changes nothing. Raises StudyError.
    """
    if len(study.name) > LONGEST_NAME:
        raise StudyError(
            f"study '{study.name}' has a name of {len(study.name)} characters; confirm allows {LONGEST_NAME}"
        )
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        known = _find(connection, study)
        before = known.confirmation if known else None
        wanted = planned(study, before, baseline, candidates, seeds, test_sets)
        if known is None:
            return _insert(connection, study, replace(wanted, looks=1))
        if before is None or wanted.runs == before.runs:
            return known
        return _extended(connection, known, replace(wanted, looks=before.looks + 1))


def planned(
    study: Study,
    before: Confirmation | None,
    baseline: TrialResult,
    candidates: Sequence[TrialResult],
    seeds: int,
    test_sets: Sequence[str],
) -> Confirmation:
    """What was confirmed before, and what is asked for now. Raises StudyError."""
    if before and test_sets and tuple(test_sets) != before.test_sets:
        raise StudyError(_other_sets(study, before))
    wanted = before or Confirmation.of(study.name, study.uid, baseline.number, baseline.params, tuple(test_sets))
    for candidate in candidates:
        wanted = wanted.with_candidate(candidate.number, candidate.params, study.spec.control_of(candidate.params))
    return wanted.with_runs([trial.number for trial in candidates], fresh_seeds(study, seeds))


def fresh_seeds(study: Study, count: int) -> list[int]:
    """Seeds that the search did not use: those that follow its own."""
    return [(study.spec.seed + 1 + i) % 2**32 for i in range(count)]


def _other_sets(study: Study, before: Confirmation) -> str:
    had = ", ".join(before.test_sets) or "none"
    return (
        f"study '{study.name}' was confirmed with other test sets ({had}); what was trained then was not scored on "
        f"these. Leave --test-set out, or delete '{study.name}{SUFFIX}' to begin anew"
    )


def _insert(connection: sa.Connection, study: Study, confirmation: Confirmation) -> Study:
    spec = study.spec.model_copy(update={"name": study.name + SUFFIX, "warm_start": None, "stop": StopSpec()})
    row = connection.execute(studies.insert().values(study_name=spec.name).returning(studies.c.study_id))
    study_id = int(row.scalar_one())
    connection.execute(study_directions.insert().values(study_id=study_id, direction="MAXIMIZE", objective=0))
    budget = len(confirmation.runs)
    kept: dict[str, Any] = {
        SPEC_KEY: spec.model_dump(mode="json"),
        PROTOCOL_KEY: [PROTOCOL, __version__],
        NEXT_START_KEY: 0,
    }
    copied = {key: attributes.read_study(connection, study.study_id, key) for key in COPIED}
    kept |= {key: value for key, value in copied.items() if value is not None}
    if split := kept.get(SPLIT_KEY):
        kept[SPLIT_KEY] = split | {"train": split["train"] + split["tuning"], "tuning": 0}
    kept |= {FIRST_STARTS_KEY: []} | _plan(confirmation)
    kept |= {FOLDER_KEY: study.folder + SUFFIX} if study.folder else {}
    attributes.write(connection, study_user_attributes, study_id, kept)
    shown = {"study:metric_names": ["score"], **note_of_confirmation(confirmation)}
    attributes.write(connection, study_system_attributes, study_id, shown)
    folder = kept.get(FOLDER_KEY)
    return Study(study_id, spec, budget, uid=kept[UID_KEY], first=(), confirmation=confirmation, folder=folder)


def _extended(connection: sa.Connection, known: Study, confirmation: Confirmation) -> Study:
    lock_study(connection, known.study_id)
    plan = _plan(confirmation)
    attributes.write(connection, study_user_attributes, known.study_id, plan)
    note = note_of_confirmation(confirmation)
    attributes.write(connection, study_system_attributes, known.study_id, note)
    return replace(known, confirmation=confirmation, budget=len(confirmation.runs), uid=plan[UID_KEY])


def _plan(confirmation: Confirmation) -> dict[str, Any]:
    """Workers that have set up the study with fewer runs set it up again, as it has another uid."""
    return {
        CONFIRMATION_KEY: confirmation.as_json(),
        BUDGET_KEY: len(confirmation.runs),
        UID_KEY: new_token(),
    }
