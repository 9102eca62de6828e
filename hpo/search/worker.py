"""The worker's loop: tidy up after the dead, claim a slot, run the trial, record; until the budgets are used.

The objective is handed in by whoever starts the worker, so that the search knows nothing of what it searches.
"""

import contextlib
import itertools
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy as sa

from hpo.errors import InputError, StorageError, WorkerError
from hpo.parameters import Params
from hpo.search import budget, heartbeats, rungs
from hpo.search.budget import Claim
from hpo.search.failures import decide
from hpo.search.garbage import collecting_rarely
from hpo.search.measurement import Measurement, Objective, Picture, Trial
from hpo.search.outages import PATIENCE_SECS, outlast
from hpo.search.queries import baseline_trial, best_trials
from hpo.search.records import TrialLost, finish, record_epoch, record_params
from hpo.search.rungs import Verdict
from hpo.search.study import Study, check_fingerprints, find_studies, has_fingerprints, stop_if_failing
from hpo.spec import Spec
from hpo.stopping import deferred

if TYPE_CHECKING:
    from hpo.search.sampling import Search

IDLE_SECS = 1.0
WORST_SCORE = 0.0
PARTING_SECS = 3.0
"""How long a worker that was asked to stop tries to tell the database."""


LoadObjective = Callable[[Spec], Objective]
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Worker:
    """What one worker process works with. ready: what it has set up, by study."""

    engine: sa.Engine
    load_objective: LoadObjective
    name: str
    say: Say
    ready: "dict[int, tuple[Objective, Search]]" = field(default_factory=dict)
    tidied: dict[int, float] = field(default_factory=dict)

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

    forever: then waits for new ones. Raises WorkerError when a study has failed too often to go on.
    """
    worker = Worker(engine, load_objective, name, say)
    while True:
        studies = worker.outlast(find_studies, engine, names)
        still_open = [study for study in studies if not study.stopped and worker.outlast(_is_open, worker, study)]
        if not still_open and not forever:
            _say_why_stopped(studies, say)
            return
        if not any(_take_trials(worker, study) for study in still_open):
            time.sleep(IDLE_SECS)


def _is_open(worker: Worker, study: Study) -> bool:
    _tidy(worker, study)
    return budget.count(worker.engine, study.study_id).finished < study.budget


def _tidy(worker: Worker, study: Study) -> None:
    """Now and then: gives back what dead workers had, and stops a study that fails."""
    if time.monotonic() - worker.tidied.get(study.study_id, -math.inf) > heartbeats.HEARTBEAT_INTERVAL_SECS:
        worker.tidied[study.study_id] = time.monotonic()
        heartbeats.reap(worker.engine, study.study_id)
        stop_if_failing(worker.engine, study)


def _say_why_stopped(studies: Sequence[Study], say: Say) -> None:
    for study in studies:
        if study.failing:
            raise WorkerError(f"study '{study.name}' stopped: {study.stopped}; `hpo resume {study.name}` lets it go on")
        if study.stopped:
            say(f"study {study.name} is stopped: {study.stopped}; `hpo resume {study.name}` lets it go on")


def _take_trials(worker: Worker, study: Study) -> int:
    """Runs what waits in a study; how many trials that was."""
    taken = 0
    while _take_trial(worker, study):
        taken += 1
    return taken


def _take_trial(worker: Worker, study: Study) -> bool:
    """Claims a trial and runs it; whatever happens, its slot is used once or given out again. False if none waits."""
    objective, search = _set_up(worker, study)
    worker.outlast(_tidy, worker, study)
    claim = None
    try:
        with deferred():
            claim = worker.outlast(_claim, worker, study, objective)
        if claim is not None:
            with heartbeats.beating(worker.engine, study.study_id, claim):
                worker.say(_run(worker, study, claim, objective, search))
    except TrialLost:
        worker.say("trial dropped: another worker has taken it over")
    except heartbeats.StudyStopped:
        _give_back(worker, claim, "interruption", "the study was stopped")
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


def _claim(worker: Worker, study: Study, objective: Objective) -> Claim | None:
    """A paused trial that has earned to go on, else the next slot; when there is neither, paused trials end."""
    spec, where = study.spec, (worker.engine, study.study_id)
    claim = rungs.promote(*where, worker.name, spec.pruner.reduction_factor)
    claim = claim or budget.claim(*where, worker.name, spec.search.may_start_from_baseline)
    if claim is None:
        _discard(objective, *rungs.prune_paused(*where))
    return claim


def _set_up(worker: Worker, study: Study) -> "tuple[Objective, Search]":
    if study.study_id not in worker.ready:
        with collecting_rarely():
            from hpo.search.sampling import Search

            objective = worker.load_objective(study.spec)
        if not worker.outlast(has_fingerprints, worker.engine, study):
            objective.check()
        worker.outlast(check_fingerprints, worker.engine, study, objective.fingerprints)
        worker.ready[study.study_id] = objective, Search(worker.engine, study.study_id, study.spec)
    return worker.ready[study.study_id]


def _give_back(
    worker: Worker,
    claim: Claim | None,
    why: Literal["failure", "interruption"],
    text: str,
    patience_secs: float = PATIENCE_SECS,
) -> None:
    if claim is not None:
        outlast(partial(budget.give_back, worker.engine, claim.trial_id, why, text), worker.say, patience_secs)


def _give_back_in_haste(worker: Worker, claim: Claim | None, text: str) -> None:
    """Before the worker ends. If the database is away too, others give the slot out again."""
    with contextlib.suppress(StorageError, sa.exc.SQLAlchemyError):
        _give_back(worker, claim, "interruption", text, PARTING_SECS)


def _run(worker: Worker, study: Study, claim: Claim, objective: Objective, search: "Search") -> str:
    """Draws the parameters, measures, and records; again if something failed that passes. What happened, in a line."""
    with collecting_rarely():
        params, distributions = worker.outlast(search.draw, claim)
    worker.outlast(record_params, worker.engine, claim.trial_id, params, distributions)
    trial = Trial(claim.number, params, claim.slot.baseline, claim.slot.continues)
    does = "goes on" if trial.number in trial.continues else "starts"
    worker.say(f"trial {trial.number} {does}: {_listed(params)}")
    for attempt in itertools.count():
        try:
            return _measure(worker, study, claim.trial_id, trial, objective, search)
        except Exception as error:
            decision = decide(error, attempt)
            if decision.action == "score worst":
                _finish_with_worst_score(worker, study, claim.trial_id, error)
                _discard(objective, trial.number, *trial.continues)
                return f"trial {trial.number} complete with the worst score: out of memory ({error})"
            if decision.action == "fail":
                _discard(objective, trial.number, *trial.continues)  # another configuration is tried
            if decision.action != "retry":
                raise
            worker.say(f"trial {trial.number} goes on in {decision.wait_secs:g} s after: {error!r}")
            time.sleep(decision.wait_secs)
            trial = replace(trial, continues=(trial.number, *claim.slot.continues))
    raise AssertionError("unreachable")


def _measure(worker: Worker, study: Study, trial_id: int, trial: Trial, objective: Objective, search: "Search") -> str:
    """Takes measurements until the objective ends, or the trial is paused or pruned."""
    verdict: Verdict = "goes on"
    measured = None
    epochs: list[dict[str, float]] = []
    with contextlib.closing(objective.run(trial)) as measurements:  # before others are told that they may go on with it
        for measured in measurements:
            epochs.append({"epoch": measured.step, "score": measured.score, **measured.parts})
            verdict, notes = worker.outlast(_judge, worker, study, trial_id, trial, measured, search)
            worker.outlast(record_epoch, worker.engine, trial_id, measured.step, measured.score, epochs, notes)
            if verdict != "goes on":
                break
    if measured is None:
        raise RuntimeError("the objective measured nothing")
    if verdict == "paused":
        at = (study.study_id, trial_id, measured.step, measured.score, measured.attributes)
        _discard(objective, *worker.outlast(rungs.pause, worker.engine, *at))
        return f"trial {trial.number} paused at epoch {measured.step}: score {measured.score:.4f}"
    ended = "pruned" if verdict == "pruned" else "complete"
    score = WORST_SCORE if math.isnan(measured.score) else measured.score  # the database holds no NaN as a result
    worth_a_look = ended == "complete" and worker.outlast(_is_worth_a_look, worker.engine, study, trial, measured)
    pictures = _illustrate(worker, measured) if worth_a_look else ()
    end = (ended.upper(), score, measured.attributes, study.spec.objective.max_clean_drop, pictures)
    worker.outlast(finish, worker.engine, trial_id, *end)
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
        return rungs.judge(worker.engine, *at), notes
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


def _finish_with_worst_score(worker: Worker, study: Study, trial_id: int, error: Exception) -> None:
    """So that the sampler learns where memory ends: failed trials it would not see."""
    end = ("COMPLETE", WORST_SCORE, {"out_of_memory": str(error)}, study.spec.objective.max_clean_drop)
    worker.outlast(finish, worker.engine, trial_id, *end)


def _listed(params: Params) -> str:
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()
    )
