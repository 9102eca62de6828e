"""Which trials of a search are confirmed, and what must be there before they are."""

import shlex
from collections.abc import Sequence

import sqlalchemy as sa

from hpo.doors.objective import OBJECTIVES
from hpo.errors import InputError, NothingCompleteError, StudyError
from hpo.search.confirmation import Confirmation
from hpo.search.sql.counts import count
from hpo.search.sql.queries import baseline_trial, best_trials
from hpo.search.sql.studies import Study
from hpo.trial_result import TrialResult

TOP = 3


def choose(
    engine: sa.Engine, study: Study, top: int | None, anyway: bool, before: Confirmation | None = None
) -> tuple[TrialResult, list[TrialResult]]:
    """The baseline, and the `top` best trials beside it, of different parameters, the best first; without a number
    those that were confirmed before, or TOP, or as many as there are. anyway: also of a search that is not finished, or
    none of whose trials is feasible. Raises StudyError, NothingCompleteError.
    """
    study.refuse_confirmation()
    study.refuse()
    name = shlex.quote(study.name)
    finished = count(engine, study.study_id).finished
    if finished < study.budget and not study.rule and not anyway:
        raise StudyError(
            f"study '{study.name}' is not finished: {finished} of {study.budget} trials are; `hpo launch {name}` runs "
            "the others, or --anyway takes what is there"
        )
    baseline = baseline_trial(engine, study.name)
    if baseline is None:
        if not best_trials(engine, study.name, 1):
            raise NothingCompleteError(study.name)
        raise StudyError(f"study '{study.name}': its baseline is not complete; `hpo launch {name}` runs it")
    ranked = best_trials(engine, study.name, study.budget, "baseline = false")
    found = _different([trial for trial in ranked if trial.feasible] or (ranked if anyway else []))
    if not found and ranked:
        raise StudyError(
            f"study '{study.name}': no trial is feasible but perhaps the baseline, so there is nothing to confirm; "
            "--anyway takes the least infeasible ones"
        )
    if not found:
        raise StudyError(
            f"study '{study.name}': no trial but the baseline is complete, and there is nothing to compare it with"
        )
    if top is None and before is not None:
        known = [each.trial for each in before.candidates]
        return baseline, sorted((each for each in ranked if each.number in known), key=lambda x: known.index(x.number))
    top = min(TOP, len(found)) if top is None else top
    if top > len(found):
        there = f"{len(found)} different feasible trial{'' if len(found) == 1 else 's'} beside its baseline"
        raise InputError(f"--top: study '{study.name}' has {there}, not {top}")
    return baseline, found[:top]


def check_test_sets(study: Study, test_sets: Sequence[str]) -> None:
    """Raises InputError if the study's objective scores none."""
    if test_sets and not OBJECTIVES.find(study.spec.objective_name).takes_test_sets:
        raise InputError(f"--test-set: objective '{study.spec.objective_name}' scores no images from disk")


def _different(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Of those with the same parameters, the first."""
    found: list[TrialResult] = []
    for trial in trials:
        if all(trial.params != other.params for other in found):
            found.append(trial)
    return found
