"""Runs one claimed trial: draws its parameters, measures step by step, records, and pauses or ends it."""

import contextlib
import itertools
import mimetypes
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from hpo.doors.objective import Measurement, Objective, Outcome, Trial
from hpo.doors.parameters import Params
from hpo.errors import InputError, MachineError, StorageError, short
from hpo.search import asha, checkpoints
from hpo.search.checkpoint_writer import CheckpointWriter
from hpo.search.checkpoints import StudyFolder
from hpo.search.confirmation import run_name
from hpo.search.failures import decide, in_words
from hpo.search.loading import fingerprints_of
from hpo.search.measurements import checked
from hpo.search.provenance import made_by
from hpo.search.sql import rungs
from hpo.search.sql.claims import Claim
from hpo.search.sql.outages import outlast
from hpo.search.sql.queries import baseline_trial, best_trials
from hpo.search.sql.reports import (
    KeptFile,
    finish,
    finish_with_worst_score,
    record_params,
    record_replayed,
    record_step,
    record_trouble,
    violation,
)
from hpo.search.sql.studies import Study
from hpo.stopping import deferred, obey
from hpo.study_file.spec import Spec

if TYPE_CHECKING:
    from hpo.search.samplers import Sampling

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class ReadyStudy:
    """A study that a worker has set up. folder: in the artifact store, None if nothing is kept."""

    engine: sa.Engine
    study: Study
    objective: Objective
    sampling: "Sampling"
    folder: StudyFolder | None
    say: Say

    def outlast(self, operation: Callable[..., T], *arguments: Any) -> T:
        """The result of the operation, which is retried while the database is unavailable."""
        return outlast(partial(operation, *arguments), self.say)

    def discard(self, *numbers: int) -> None:
        """Removes the checkpoints of these trials."""
        checkpoints.discard(self.folder, numbers)


def run_trial(ready: ReadyStudy, claim: Claim) -> str:
    """Draws parameters, measures and records, with retries after temporary errors. Returns the outcome in one line."""
    with deferred():  # a first draw imports much, which catches a request to stop, or fails of it
        params, distributions = ready.outlast(ready.sampling.draw, claim)
    origin = claim.start.continues[-1] if claim.start.continues else claim.number
    bracket = asha.bracket_of(ready.study.spec, origin)
    ready.outlast(record_params, ready.engine, claim.hold, params, distributions, bracket)
    does = "goes on" if claim.number in claim.start.continues else "starts"
    whose = f"{run_name(claim.start.confirms)}: " if claim.start.confirms else ""
    ready.say(f"trial {claim.number} {does}: {whose}{_listed(params)}")
    continues = claim.start.continues
    for attempt in itertools.count():
        try:
            return _measure(ready, claim, params, continues, bracket)
        except (Exception, SystemExit) as raised:
            obey()  # of which an import may have made another error
            error = raised if isinstance(raised, Exception) else _exited(raised)
            wait = _handle(ready, claim, error, attempt)
            if isinstance(wait, str):
                return wait
            time.sleep(wait)
            ready.outlast(record_trouble, ready.engine, claim.hold, None)
            continues = (claim.number, *(number for number in continues if number != claim.number))
    raise AssertionError("unreachable")


def _exited(ended: SystemExit) -> Exception:
    """What an objective's code asked for would end the worker, and each that takes the trial after it."""
    error = RuntimeError(f"the objective called sys.exit({ended.code!r})")
    error.__cause__ = ended
    return error


def _handle(ready: ReadyStudy, claim: Claim, error: Exception, attempt: int) -> float | str:
    """Returns how many seconds to wait before a retry, or how the trial has ended; otherwise raises the error."""
    decision = decide(error, attempt)
    if decision.action == "score worst" and not claim.start.baseline:  # others are compared with it
        ready.outlast(finish_with_worst_score, ready.engine, claim.hold, str(error))
        ready.discard(claim.number, *claim.start.continues)
        return f"trial {claim.number} complete with the worst score: out of memory ({error})"
    if decision.action in ("fail", "score worst"):
        ready.discard(claim.number, *claim.start.continues)  # another configuration is tried
    if decision.action == "leave" and not isinstance(error, InputError | StorageError | MachineError):
        raise InputError(in_words(error)) from error
    if decision.action != "retry":
        raise error
    ready.say(f"trial {claim.number} goes on in {decision.wait_secs:g} s: {in_words(error)}")
    ready.outlast(record_trouble, ready.engine, claim.hold, in_words(error))
    return decision.wait_secs


def _measure(ready: ReadyStudy, claim: Claim, params: Params, continues: Sequence[int], bracket: int | None) -> str:
    """Takes measurements until the objective ends or the trial is paused or pruned."""
    spec = ready.study.spec
    whose = checkpoints.identity(spec, ready.objective, params, claim.start.confirms)
    found = checkpoints.load(ready.folder, continues, whose) if ready.folder and continues else None
    trial = Trial(
        number=claim.number,
        params=params,
        seed=_seed_of(claim, spec),
        steps=spec.steps,
        split="test" if ready.study.confirmation else "tuning",
        test_sets=ready.study.confirmation.test_sets if ready.study.confirmation else (),
        baseline=claim.start.baseline,
        checkpoint=found.content if found else None,
    )
    reports = found.reports if found else []
    if reports:
        ready.outlast(record_replayed, ready.engine, claim.hold, reports)
    resumed_after = len(reports)
    previous = 0
    seen = rungs.Seen(claim.hold.trial_id, bracket)
    verdict: asha.Verdict = "goes on"
    measured = None
    with _measuring(ready.objective, trial) as (measurements, writer):
        for yielded in measurements:
            obey()
            measured = checked(yielded, spec.objective_name, trial, previous)
            previous = measured.step
            reports = [report for report in reports if report["step"] < measured.step]
            reports.append({"step": measured.step, "score": measured.score, **measured.parts})
            if ready.folder and measured.checkpoint is not None and measured.step < spec.steps:
                writer.offer(checkpoints.taking(ready.folder, trial, continues, whose, measured, list(reports)))
            if not trial.baseline and trial.split == "tuning" and measured.step < spec.steps:
                at = (ready.study.study_id, spec, seen, measured.step, measured.score)
                verdict = ready.outlast(asha.judge, ready.engine, *at)
            ready.outlast(record_step, ready.engine, claim.hold, measured, reports)
            if verdict != "goes on":
                writer.flush()
                break
            writer.move_on()
    if measured is None:
        raise RuntimeError(f"objective '{spec.objective_name}' measured nothing")
    return _end(ready, claim, _with_provenance(ready, trial, measured, resumed_after), verdict)


@contextlib.contextmanager
def _measuring(objective: Objective, trial: Trial) -> Iterator[tuple[Iterator[Measurement], CheckpointWriter]]:
    """The measurements, which have ended when the block is left, before others may continue the trial. If the trial is
    interrupted between two steps, its last checkpoint is written.
    """
    writer = CheckpointWriter()
    measurements = _iterated(objective.run(trial))
    try:
        yield measurements, writer
    except BaseException:
        with contextlib.suppress(OSError):
            writer.flush()
        raise
    finally:
        writer.close()
        if close := getattr(measurements, "close", None):
            close()


def _iterated(given: Any) -> Iterator[Measurement]:
    if not hasattr(given, "__iter__"):
        raise InputError(f"the objective's run must be a generator of hpo.Measurement, but it returned {short(given)}")
    return iter(given)


def _seed_of(claim: Claim, spec: Spec) -> int:
    """All trials of a search share the study's seed; a run of a confirmation has its own."""
    return int(claim.start.confirms["seed"]) if claim.start.confirms else spec.seed


def _with_provenance(ready: ReadyStudy, trial: Trial, measured: Measurement, resumed_after: int) -> Measurement:
    """Adds the provenance to the objective's own attributes."""
    made = made_by(ready.study.spec, fingerprints_of(ready.study.spec, ready.objective)) | {"seed": trial.seed}
    own = measured.attributes.get("made_by", {})
    resumed = {"resumed_after_epoch": resumed_after} if resumed_after else {}
    attributes = {**measured.attributes, "host": made["host"], "made_by": {**made, **own}, **resumed}
    return replace(measured, attributes=attributes)


def _end(ready: ReadyStudy, claim: Claim, measured: Measurement, verdict: asha.Verdict) -> str:
    number, step = claim.number, f"{ready.study.spec.step_word} {measured.step}"
    if verdict == "paused":
        pruned = ready.outlast(rungs.pause, ready.engine, ready.study.study_id, claim.hold, measured)
        ready.discard(*pruned)
        return f"trial {number} paused at {step}: score {measured.score:.4f}"
    ended = "pruned" if verdict == "pruned" else "complete"
    worth_keeping = ended == "complete" and ready.outlast(_is_worth_keeping, ready, claim, measured)
    if claim.start.confirms is not None:
        measured = replace(measured, constraints={}, outcomes=measured.outcomes or _parts_as_outcomes(measured))
    files = _keep(ready, measured) if worth_keeping else []
    ready.outlast(finish, ready.engine, claim.hold, ended.upper(), measured.score, measured, files)
    ready.discard(number, *claim.start.continues)
    return f"trial {number} {ended} at {step}: score {measured.score:.4f}"


def _is_worth_keeping(ready: ReadyStudy, claim: Claim, measured: Measurement) -> bool:
    """Whether it is the baseline or, when it ends, the best feasible trial; such trials are few. Of a confirmation, the
    first seed of each configuration.
    """
    if claim.start.baseline:
        return True
    if (confirms := claim.start.confirms) is not None:
        confirmation = ready.study.confirmation
        return confirmation is not None and confirms["seed"] == confirmation.seeds_of(confirms["configuration"])[0]
    best = best_trials(ready.engine, ready.study.name, 1)
    is_best = not best or not best[0].feasible or best[0].score is None or measured.score > best[0].score
    return is_best and not _is_infeasible(ready, measured)


def _parts_as_outcomes(measured: Measurement) -> list[Outcome]:
    return [Outcome(name, value) for name, value in measured.parts.items()]


def _is_infeasible(ready: ReadyStudy, measured: Measurement) -> bool:
    """As far as is known: without a complete baseline, comparisons with it are not."""
    if not measured.constraints:
        return False
    baseline = baseline_trial(ready.engine, ready.study.name)
    parts: Mapping[str, float] | None = baseline.parts if baseline else None
    found = [violation(constraint, measured.parts, parts) for constraint in measured.constraints.values()]
    return any(exceeded is not None and exceeded > 0 for exceeded in found)


def _keep(ready: ReadyStudy, measured: Measurement) -> list[KeptFile]:
    """Stores the trial's files. A failure to do so does not fail the trial."""
    if ready.folder is None:
        return []
    kept = []
    try:
        for filename, content in measured.keep().items():
            kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
            file = KeptFile(str(uuid.uuid4()), filename, kind)
            ready.folder.artifacts.write(file.artifact_id, content)
            kept.append(file)
    except Exception as error:
        ready.say(f"not all files of this trial could be kept: {error!r}")
    return kept


def _listed(params: Params) -> str:
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()
    )
