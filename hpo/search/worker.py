"""The worker's loop: give back trials of dead workers, claim a trial, run it; until the budgets are used.

Objectives are looked up by name, so the search knows nothing of what it optimizes. If one study cannot be worked on,
such as when its images are missing here, the worker continues with others.
"""

import contextlib
import gc
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from hpo.artifacts import Artifacts
from hpo.doors.objective import Objective, Store
from hpo.errors import InputError, MachineError, StorageError, WorkerError
from hpo.log import about
from hpo.search.checkpoints import NoStore, StudyFolder
from hpo.search.confirmation import SUFFIX
from hpo.search.hook import call_hook, has_hook, wait_for_hooks
from hpo.search.loading import fingerprints_of
from hpo.search.plan import Plan
from hpo.search.running import ReadyStudy, run_trial
from hpo.search.shares import Shares
from hpo.search.sql import claims, heartbeats, rungs
from hpo.search.sql.attributes import ARTIFACTS_KEY
from hpo.search.sql.claims import Claim, Why
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.fence import TrialDeleted, TrialLost, new_token
from hpo.search.sql.joining import adopt, check_fingerprints, has_fingerprints
from hpo.search.sql.news import news
from hpo.search.sql.open_studies import Finished, open_studies
from hpo.search.sql.outages import PATIENCE_SECS, outlast
from hpo.search.sql.stop_rules import stop_by_rule
from hpo.search.sql.stopping import stop_if_failing
from hpo.search.sql.studies import Study, find_studies
from hpo.search.study_files import location_in_full
from hpo.stopping import Stopped, deferred, is_requested
from hpo.study_file.spec import Spec

IDLE_SECS = 1.0
LOOK_SECS = 10.0
"""How often a worker with a single study to work on checks for others."""
SKIP_SECS = 600.0
"""Time until a study that cannot be worked on here is tried again, as its images may be back."""
MAX_READY = 2
"""Studies whose images and weights a worker keeps in memory."""
PARTING_SECS = 3.0
"""How long a stopping worker tries to reach the database to give back its trial."""

LoadObjective = Callable[[Spec, Store], Objective]
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Worker:
    """The state of a worker process. artifacts: where it keeps checkpoints and files, None if nowhere; ready: studies
    that are set up, the most recently used last; tidied: when `_tidy` last ran; skipped: when to retry studies that
    cannot be worked on here, and why; shares: how it shares itself between studies; dropped: whether studies were
    dropped since one was last set up.
    """

    engine: sa.Engine
    load_objective: LoadObjective
    artifacts: Artifacts | None
    name: str
    say: Say
    ready: dict[StudyKey, tuple[ReadyStudy, Plan]] = field(default_factory=dict)
    tidied: dict[StudyKey, float] = field(default_factory=dict)
    skipped: dict[StudyKey, tuple[float, InputError]] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)
    dropped: bool = False

    def outlast(self, operation: Callable[..., T], *arguments: Any) -> T:
        """The result of the operation, which is retried while the database is unavailable."""
        return outlast(partial(operation, *arguments), self.say)


def work(
    engine: sa.Engine,
    names: Sequence[str],
    load_objective: LoadObjective,
    name: str,
    say: Say,
    forever: bool = False,
    artifacts: Artifacts | None = None,
) -> None:
    """Runs trials of the named studies, or of all if none is named, until their budgets are used.

    forever: wait for new studies instead of returning. artifacts: where checkpoints and files are kept; None for
    nowhere. Raises WorkerError if a study was stopped because its trials fail, InputError if the only studies left
    cannot be worked on here.
    """
    worker = Worker(engine, load_objective, artifacts, name, partial(_say_if_possible, say))
    finished = Finished()
    while True:
        found = worker.outlast(open_studies, engine, names, finished)
        _forget(worker, [study.key for study, _ in found])
        todo = [(study, counts) for study, counts in found if _may_work_on(worker, study)]
        if not todo and not forever:
            wait_for_hooks()
            _say_what_is_left(worker, [study for study, _ in found], names)
            return
        until = time.monotonic() + LOOK_SECS if len(todo) == 1 else 0.0
        started = time.monotonic()
        in_turn = worker.shares.in_turn(todo, worker.ready)
        taken = next((study for study in in_turn if _take_trials(worker, study, names, until)), None)
        if taken is None:
            time.sleep(IDLE_SECS if found else 2 * IDLE_SECS)
        else:
            worker.shares.note(todo, taken, time.monotonic() - started)


def _say_if_possible(say: Say, text: str) -> None:
    """A log on a full disk, or whose reader has gone, must not stop the worker."""
    with contextlib.suppress(OSError):
        say(text)


def _forget(worker: Worker, still_open: Sequence[StudyKey]) -> None:
    """Drops the state of studies that have ended or were deleted."""
    for closed in set(worker.ready).difference(still_open):
        _tell(worker, closed)
        worker.dropped = True
    for kept in (worker.ready, worker.tidied, worker.skipped, worker.shares.used):
        for key in set(kept).difference(still_open):
            del kept[key]


def _may_work_on(worker: Worker, study: Study) -> bool:
    """False for studies of incompatible versions of hpo, and for a while for those that cannot be worked on here."""
    if study.refused and study.key not in worker.skipped:
        worker.say(study.refused)
        worker.skipped[study.key] = math.inf, InputError(study.refused)
    again_at, _ = worker.skipped.get(study.key, (0.0, None))
    return time.monotonic() >= again_at


def _tell(worker: Worker, study: StudyKey) -> None:
    """Calls HPO_HOOK, if there is one, with what is new of a study."""
    for event, content in worker.outlast(news, worker.engine, study) if has_hook() else ():
        call_hook(event, content, worker.say)


def _tidy(worker: Worker, study: Study) -> None:
    """From time to time, gives back trials of dead workers, and stops the study if too many trials failed."""
    if time.monotonic() - worker.tidied.get(study.key, -math.inf) > heartbeats.HEARTBEAT_INTERVAL_SECS:
        worker.tidied[study.key] = time.monotonic()
        heartbeats.reap(worker.engine, study.study_id)
        stop_if_failing(worker.engine, study)
        stop_by_rule(worker.engine, study)


def _say_what_is_left(worker: Worker, left: Sequence[Study], names: Sequence[str]) -> None:
    """Says why the worker ends although budgets are left. Raises InputError, WorkerError."""
    _say_why_stopped(worker.outlast(find_studies, worker.engine, names), worker.say)
    for study in left:
        if not study.refused:
            raise worker.skipped[study.key][1]


def _say_why_stopped(studies: Sequence[Study], say: Say) -> None:
    for study in studies:
        if study.failing:
            raise WorkerError(f"study '{study.name}' {study.why_stopped}")
        if study.stopped:
            say(f"study {study.name} is {study.why_stopped}")


def _take_trials(worker: Worker, study: Study, names: Sequence[str], until: float) -> bool:
    """Runs at least one trial of a study if there is one, and more until it is time to look for other studies. Returns
    whether there was one. If the study cannot be worked on here, raises InputError if it is the only one asked for,
    otherwise skips it.
    """
    taken = False
    try:
        with about(study=study.name):
            while _take_trial(worker, study):
                taken = True
                worker.skipped.pop(study.key, None)
                if time.monotonic() >= until:
                    break
    except InputError as error:
        if len(names) == 1:
            raise
        if study.key not in worker.skipped:
            worker.say(f"study {study.name} cannot be worked on here for now: {error}")
        worker.skipped[study.key] = time.monotonic() + SKIP_SECS, error
    return taken


def _take_trial(worker: Worker, study: Study) -> bool:
    """Claims and runs a trial, and gives it back if it does not finish. Returns False if there is none to claim."""
    ready, plan = _set_up(worker, study)
    worker.outlast(_tidy, worker, study)
    claim = None
    try:
        with deferred():
            claim = worker.outlast(_claim, worker, ready, plan, new_token())
        if claim is not None:
            with heartbeats.beating(worker.engine, study.study_id, claim), about(trial=claim.number):
                worker.say(run_trial(ready, claim))
            worker.outlast(stop_by_rule, worker.engine, study)
            _tell(worker, study.key)
    except TrialLost as lost:
        worker.say(f"trial dropped: {lost}")
        if claim is not None and isinstance(lost, TrialDeleted):
            ready.discard(claim.number, *claim.start.continues)
    except heartbeats.StudyStopped:
        _give_back(worker, claim, "stopped", "the study was stopped")
    except MachineError as error:
        _give_back_in_haste(worker, claim, "device failed", f"its worker's device failed: {error}")
        raise
    except (InputError, StorageError) as error:  # this machine is at fault: others may continue the trial
        _give_back_in_haste(worker, claim, "stopped", str(error))
        raise
    except Exception as error:
        if is_requested():  # of which an import may have made another error
            _give_back_in_haste(worker, claim, "stopped", "its worker was asked to stop")
            raise Stopped from error
        worker.say(traceback.format_exc())
        _give_back(worker, claim, "failure", traceback.format_exc())
        worker.outlast(stop_if_failing, worker.engine, study)
    except BaseException:  # asked to stop: SIGINT, SIGTERM
        _give_back_in_haste(worker, claim, "stopped", "its worker was asked to stop")
        raise
    return claim is not None


def _claim(worker: Worker, ready: ReadyStudy, plan: Plan, token: str) -> Claim | None:
    """Promotes a paused trial, or claims the next one; if there is neither, prunes paused trials that can no longer be
    promoted. Idempotent with the same token.
    """
    study, engine = ready.study, worker.engine
    spec = study.spec
    claim = claims.claimed_before(engine, study.study_id, token)
    most, alone = spec.max_parallel, study.waits_for_baseline
    claim = claim or rungs.promote(engine, study.key, worker.name, spec.pruner.reduction_factor, token, most)
    claim = claim or claims.claim(engine, study.key, plan.start_of, worker.name, alone, token, most)
    if claim is None:
        ready.discard(*rungs.prune_paused(engine, study.study_id))
    return claim


def _set_up(worker: Worker, study: Study) -> tuple[ReadyStudy, Plan]:
    if study.key not in worker.ready:
        while len(worker.ready) >= MAX_READY:
            del worker.ready[next(iter(worker.ready))]
            worker.dropped = True
        if worker.dropped:
            gc.collect()  # what was dropped may hold GPU memory in reference cycles
            worker.dropped = False
        worker.ready[study.key] = _made_ready(worker, study), Plan(study.spec, study.first, study.confirmation)
    worker.ready[study.key] = worker.ready.pop(study.key)  # most recently used last
    return worker.ready[study.key]


def _made_ready(worker: Worker, study: Study) -> ReadyStudy:
    from hpo.search.samplers import Sampling

    spec, artifacts = study.spec, worker.artifacts
    if artifacts is not None:
        artifacts.check()
    folder = StudyFolder(artifacts, study.files) if artifacts is not None else None
    shared = replace(folder, folder=study.files.removesuffix(SUFFIX)) if folder and study.confirmation else folder
    objective = worker.load_objective(spec, shared or NoStore())
    if not worker.outlast(has_fingerprints, worker.engine, study):
        objective.check()
    kept = {ARTIFACTS_KEY: location_in_full(artifacts.location)} if artifacts is not None else {}
    about = {**objective.about(), **kept}
    worker.outlast(check_fingerprints, worker.engine, study, fingerprints_of(spec, objective), about)
    worker.outlast(adopt, worker.engine, study)
    return ReadyStudy(
        worker.engine, study, objective, Sampling(worker.engine, study.study_id, spec), folder, worker.say
    )


def _give_back(worker: Worker, claim: Claim | None, why: Why, text: str, patience_secs: float = PATIENCE_SECS) -> None:
    if claim is not None:
        outlast(partial(claims.give_back, worker.engine, claim.hold, why, text), worker.say, patience_secs)


def _give_back_in_haste(worker: Worker, claim: Claim | None, why: Why, text: str) -> None:
    """Gives back before the worker ends. If the database is unavailable too, others do so later."""
    with contextlib.suppress(StorageError, sa.exc.SQLAlchemyError):
        _give_back(worker, claim, why, text, PARTING_SECS)
