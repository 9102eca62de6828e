"""The worker's loop: tidy up after the dead, claim a slot, run the trial, record; until the budgets are used.

The objective is handed in by whoever starts the worker, so that the search knows nothing of what it searches. One
study's trouble, its images missing here say, keeps the worker from no other study.
"""

import contextlib
import gc
import itertools
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy as sa

from hpo.doors.objective import Measurement, Objective, Picture, Trial
from hpo.doors.parameters import Params
from hpo.errors import InputError, MachineError, StorageError, WorkerError
from hpo.search import asha
from hpo.search.asha import Verdict
from hpo.search.failures import decide, in_words
from hpo.search.sql import claims, heartbeats
from hpo.search.sql.claims import DEVICE_FAILED, Claim, Counts
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.fence import Hold, TrialDeleted, TrialLost, new_token
from hpo.search.sql.outages import PATIENCE_SECS, outlast
from hpo.search.sql.queries import baseline_trial, best_trials
from hpo.search.sql.reports import (
    WORST_SCORE,
    finish,
    finish_with_worst_score,
    record_epoch,
    record_params,
    record_trouble,
)
from hpo.search.sql.studies import (
    Study,
    check_fingerprints,
    find_studies,
    has_fingerprints,
    open_studies,
    stop_if_failing,
)
from hpo.stopping import deferred
from hpo.study_file.spec import Spec

if TYPE_CHECKING:
    from hpo.search.samplers import Search

IDLE_SECS = 1.0
LOOK_SECS = 10.0
"""A worker that has one study to work on looks so often for others."""
SKIP_SECS = 600.0
"""A study that cannot be worked on here is tried again so much later: its images may have come back."""
MOST_READY = 2
"""Studies of which a worker keeps images and weights in memory."""
PARTING_SECS = 3.0
"""How long a worker that was asked to stop tries to tell the database."""


LoadObjective = Callable[[Spec], Objective]
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Worker:
    """What one worker process works with. ready: what it has set up, by study, what was used last at the end; skipped:
    studies that cannot be worked on here: when to try again, and why.
    """

    engine: sa.Engine
    load_objective: LoadObjective
    name: str
    say: Say
    ready: "dict[StudyKey, tuple[Objective, Search]]" = field(default_factory=dict)
    tidied: dict[StudyKey, float] = field(default_factory=dict)
    skipped: dict[StudyKey, tuple[float, InputError]] = field(default_factory=dict)

    def outlast(self, operation: Callable[..., T], *arguments: Any) -> T:
        """What the operation gives, however long the database is away."""
        return outlast(partial(operation, *arguments), self.say)


def work(
    engine: sa.Engine,
    names: Sequence[str],
    load_objective: LoadObjective,
    name: str,
    say: Say,
    forever: bool = False,
) -> None:
    """Takes trials of the named studies (of all, if none is named) until their budgets are used.

    forever: then waits for new ones. Raises WorkerError when a study has failed too often to go on, InputError when
    nothing is left but studies that cannot be worked on here.
    """
    worker = Worker(engine, load_objective, name, partial(_say_if_possible, say))
    while True:
        found = worker.outlast(open_studies, engine, names)
        _forget(worker, [study.key for study, _ in found])
        todo = [(study, counts) for study, counts in found if _may_work_on(worker, study)]
        if not todo and not forever:
            _say_what_is_left(worker, [study for study, _ in found], names)
            return
        until = time.monotonic() + LOOK_SECS if len(todo) == 1 else 0.0
        if not any(_take_trials(worker, study, names, until) for study in _in_turn(worker, todo)):
            time.sleep(IDLE_SECS)


def _say_if_possible(say: Say, text: str) -> None:
    """A log on a full disk, or that nobody reads any more, keeps no worker from its work."""
    with contextlib.suppress(OSError):
        say(text)


def _forget(worker: Worker, still_open: Sequence[StudyKey]) -> None:
    """What was kept for studies that have ended or were deleted."""
    for kept in (worker.ready, worker.tidied, worker.skipped):
        for key in set(kept).difference(still_open):
            del kept[key]


def _may_work_on(worker: Worker, study: Study) -> bool:
    """Not on what another version of hpo submitted; not for a while on what cannot be worked on here."""
    if study.refused and study.key not in worker.skipped:
        worker.say(study.refused)
        worker.skipped[study.key] = math.inf, InputError(study.refused)
    again_at, _ = worker.skipped.get(study.key, (0.0, None))
    return time.monotonic() >= again_at


def _in_turn(worker: Worker, todo: Sequence[tuple[Study, Counts]]) -> list[Study]:
    """First the study that the fewest workers are at; of equals the one that this worker has ready."""
    in_turn = sorted(todo, key=lambda each: (each[1].running, each[0].key not in worker.ready, each[0].study_id))
    return [study for study, _ in in_turn]


def _tidy(worker: Worker, study: Study) -> None:
    """Now and then: gives back what dead workers had, and stops a study that fails."""
    if time.monotonic() - worker.tidied.get(study.key, -math.inf) > heartbeats.HEARTBEAT_INTERVAL_SECS:
        worker.tidied[study.key] = time.monotonic()
        heartbeats.reap(worker.engine, study.study_id)
        stop_if_failing(worker.engine, study)


def _say_what_is_left(worker: Worker, left: Sequence[Study], names: Sequence[str]) -> None:
    """Why a worker ends though budgets are left. Raises InputError, WorkerError."""
    _say_why_stopped(worker.outlast(find_studies, worker.engine, names), worker.say)
    for study in left:
        if not study.refused:
            raise worker.skipped[study.key][1]


def _say_why_stopped(studies: Sequence[Study], say: Say) -> None:
    for study in studies:
        if study.failing:
            raise WorkerError(f"study '{study.name}' stopped: {study.stopped}; `hpo resume {study.name}` lets it go on")
        if study.stopped:
            say(f"study {study.name} is stopped: {study.stopped}; `hpo resume {study.name}` lets it go on")


def _take_trials(worker: Worker, study: Study, names: Sequence[str], until: float) -> bool:
    """Runs a trial that waits in a study, and more of them until it is time to look for other studies; whether there
    was one. If the study cannot be worked on here, and is not the only one that was asked for, that is said.
    """
    taken = False
    try:
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
    """Claims a trial and runs it; whatever happens, its slot is used once or given out again. False if none waits."""
    objective, search = _set_up(worker, study)
    worker.outlast(_tidy, worker, study)
    claim = None
    try:
        with deferred():
            claim = worker.outlast(_claim, worker, study, objective, new_token())
        if claim is not None:
            with heartbeats.beating(worker.engine, study.study_id, claim):
                worker.say(_run(worker, study, claim, objective, search))
    except TrialLost as lost:
        worker.say(f"trial dropped: {lost}")
        if claim is not None and isinstance(lost, TrialDeleted):
            _discard(objective, claim.number, *claim.slot.continues)
    except heartbeats.StudyStopped:
        _give_back(worker, claim, "interruption", "the study was stopped")
    except MachineError as error:
        _give_back_in_haste(worker, claim, f"{DEVICE_FAILED}: {error}")
        raise
    except (InputError, StorageError) as error:  # this machine's affair: the trial goes on elsewhere
        _give_back_in_haste(worker, claim, str(error))
        raise
    except Exception:
        worker.say(traceback.format_exc())
        _give_back(worker, claim, "failure", traceback.format_exc())
        worker.outlast(stop_if_failing, worker.engine, study)
    except BaseException:  # asked to stop: SIGINT, SIGTERM
        _give_back_in_haste(worker, claim, "its worker was asked to stop")
        raise
    return claim is not None


def _claim(worker: Worker, study: Study, objective: Objective, token: str) -> Claim | None:
    """A paused trial that has earned to go on, else the next slot; when there is neither, paused trials end. May be
    said twice with the same token.
    """
    spec, engine = study.spec, worker.engine
    claim = claims.claimed_before(engine, study.study_id, token)
    claim = claim or asha.promote(engine, study.key, worker.name, spec.pruner.reduction_factor, token)
    claim = claim or claims.claim(engine, study.key, worker.name, spec.search.may_start_from_baseline, token)
    if claim is None:
        _discard(objective, *asha.prune_paused(engine, study.study_id))
    return claim


def _set_up(worker: Worker, study: Study) -> "tuple[Objective, Search]":
    if study.key not in worker.ready:
        while len(worker.ready) >= MOST_READY:
            del worker.ready[next(iter(worker.ready))]
        gc.collect()  # what goes may hold a GPU's memory in cycles
        from hpo.search.samplers import Search

        objective = worker.load_objective(study.spec)
        if not worker.outlast(has_fingerprints, worker.engine, study):
            objective.check()
        worker.outlast(check_fingerprints, worker.engine, study, objective.fingerprints, objective.about)
        worker.ready[study.key] = objective, Search(worker.engine, study.study_id, study.spec)
    worker.ready[study.key] = worker.ready.pop(study.key)  # the one used last
    return worker.ready[study.key]


def _give_back(
    worker: Worker,
    claim: Claim | None,
    why: Literal["failure", "interruption"],
    text: str,
    patience_secs: float = PATIENCE_SECS,
) -> None:
    if claim is not None:
        outlast(partial(claims.give_back, worker.engine, claim.hold, why, text), worker.say, patience_secs)


def _give_back_in_haste(worker: Worker, claim: Claim | None, text: str) -> None:
    """Before the worker ends. If the database is away too, others give the slot out again."""
    with contextlib.suppress(StorageError, sa.exc.SQLAlchemyError):
        _give_back(worker, claim, "interruption", text, PARTING_SECS)


def _run(worker: Worker, study: Study, claim: Claim, objective: Objective, search: "Search") -> str:
    """Draws the parameters, measures, and records; again if something failed that passes. What happened, in a line."""
    params, distributions = worker.outlast(search.draw, claim)
    worker.outlast(record_params, worker.engine, claim.hold, params, distributions)
    trial = Trial(claim.number, params, claim.slot.baseline, claim.slot.continues)
    does = "goes on" if trial.number in trial.continues else "starts"
    worker.say(f"trial {trial.number} {does}: {_listed(params)}")
    for attempt in itertools.count():
        try:
            return _measure(worker, study, claim.hold, trial, objective, search)
        except Exception as error:
            decision = decide(error, attempt)
            if decision.action == "score worst" and not trial.baseline:  # which the others are compared with
                most = study.spec.objective.max_clean_drop
                worker.outlast(finish_with_worst_score, worker.engine, claim.hold, str(error), most)
                _discard(objective, trial.number, *trial.continues)
                return f"trial {trial.number} complete with the worst score: out of memory ({error})"
            if decision.action in ("fail", "score worst"):
                _discard(objective, trial.number, *trial.continues)  # another configuration is tried
            if decision.action == "leave" and not isinstance(error, InputError | StorageError | MachineError):
                raise InputError(in_words(error)) from error
            if decision.action != "retry":
                raise
            worker.say(f"trial {trial.number} goes on in {decision.wait_secs:g} s: {in_words(error)}")
            worker.outlast(record_trouble, worker.engine, claim.hold, in_words(error))
            time.sleep(decision.wait_secs)
            worker.outlast(record_trouble, worker.engine, claim.hold, None)
            trial = replace(trial, continues=(trial.number, *claim.slot.continues))
    raise AssertionError("unreachable")


def _measure(worker: Worker, study: Study, hold: Hold, trial: Trial, objective: Objective, search: "Search") -> str:
    """Takes measurements until the objective ends, or the trial is paused or pruned."""
    verdict: Verdict = "goes on"
    measured = None
    epochs: list[dict[str, float]] = []
    with contextlib.closing(objective.run(trial)) as measurements:  # before others are told that they may go on with it
        for measured in measurements:
            epochs.append({"epoch": measured.step, "score": measured.score, **measured.parts})
            verdict, notes = worker.outlast(_judge, worker, study, hold.trial_id, trial, measured, search)
            worker.outlast(record_epoch, worker.engine, hold, measured.step, measured.score, epochs, notes)
            if verdict != "goes on":
                break
    if measured is None:
        raise RuntimeError("the objective measured nothing")
    if verdict == "paused":
        at = (study.study_id, hold, measured.step, measured.score, measured.attributes)
        _discard(objective, *worker.outlast(asha.pause, worker.engine, *at))
        return f"trial {trial.number} paused at epoch {measured.step}: score {measured.score:.4f}"
    ended = "pruned" if verdict == "pruned" else "complete"
    score = WORST_SCORE if math.isnan(measured.score) else measured.score  # the database holds no NaN as a result
    worth_a_look = ended == "complete" and worker.outlast(_is_worth_a_look, worker.engine, study, trial, measured)
    pictures = _illustrate(worker, measured) if worth_a_look else ()
    end = (ended.upper(), score, measured.attributes, study.spec.objective.max_clean_drop, pictures)
    worker.outlast(finish, worker.engine, hold, *end)
    _discard(objective, trial.number, *trial.continues)
    return f"trial {trial.number} {ended} at epoch {measured.step}: score {score:.4f}"


def _judge(
    worker: Worker, study: Study, trial_id: int, trial: Trial, measured: Measurement, search: "Search"
) -> tuple[Verdict, dict[str, float]]:
    """What becomes of the trial, and the pruner's notes. Not judged are the baseline, which after few epochs scores
    above strong augmentation, what was judged before a checkpoint, and the last epoch.
    """
    if trial.baseline:
        return "goes on", {}
    pruned, notes = search.judge(measured.step, measured.score)
    if measured.resumed or measured.step == study.spec.training.epochs:
        return "goes on", notes
    if study.spec.pruner.name == "asha":
        at = (study.study_id, study.spec, trial_id, measured.step, measured.score)
        return asha.judge(worker.engine, *at), notes
    return "pruned" if pruned else "goes on", notes


def _is_worth_a_look(engine: sa.Engine, study: Study, trial: Trial, measured: Measurement) -> bool:
    """The baseline, and what is the best feasible trial when it ends: so there are few."""
    if trial.baseline:
        return True
    best = best_trials(engine, study.name, 1)
    is_best = not best or not best[0].feasible or best[0].score is None or measured.score > best[0].score
    return is_best and not _loses_too_much(engine, study, measured)


def _loses_too_much(engine: sa.Engine, study: Study, measured: Measurement) -> bool:
    """Whether it will be infeasible; not known before the baseline is complete."""
    most, clean = study.spec.objective.max_clean_drop, measured.attributes.get("clean_accuracy")
    if most is None or clean is None:
        return False
    baseline = baseline_trial(engine, study.name)
    return baseline is not None and baseline.clean_accuracy is not None and baseline.clean_accuracy - clean > most


def _illustrate(worker: Worker, measured: Measurement) -> Sequence[Picture]:
    """A picture that cannot be drawn or kept does not take its trial with it."""
    try:
        return measured.illustrate()
    except Exception as error:
        worker.say(f"no pictures of this trial: {error!r}")
        return ()


def _discard(objective: Objective, *numbers: int) -> None:
    """A file that is left over harms nobody."""
    with contextlib.suppress(OSError):
        objective.discard(numbers)


def _listed(params: Params) -> str:
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()
    )
