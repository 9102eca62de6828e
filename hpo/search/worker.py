"""The worker's loop: reap, claim, run, record, until the budget is used.

The objective is handed in by whoever starts the worker, so that the search knows nothing of what it searches.
"""

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from hpo.errors import StudyError, WorkerError
from hpo.parameters import Params
from hpo.search import budget
from hpo.search.storage import Database
from hpo.search.study import Study, check_fingerprints, find_studies, record_constraints, start_trial
from hpo.search.tables import trial_user_attributes, trials
from hpo.spec import Spec

if TYPE_CHECKING:
    import optuna

IDLE_SECS = 1.0
FAILURES_ALWAYS_BORNE = 2


@dataclass(frozen=True)
class Measurement:
    """What an objective yields at each step.

    step: from 1; score: what is maximised; parts: what the score is made of; attributes: kept with the trial if this
    is its last.
    """

    step: int
    score: float
    parts: Mapping[str, float]
    attributes: Mapping[str, Any]


class Objective(Protocol):
    """One study's objective, set up once in a worker."""

    fingerprints: Mapping[str, str]
    """What must be the same for every worker of the study: its images, its weights."""

    def run(self, params: Params, baseline: bool) -> Iterator[Measurement]:
        """Measures one configuration, step by step; the caller stops taking when the trial is pruned."""
        ...


LoadObjective = Callable[[Spec], Objective]
Say = Callable[[str], None]


def work(
    database: Database,
    names: Sequence[str],
    load_objective: LoadObjective,
    name: str,
    say: Say,
    forever: bool = False,
) -> None:
    """Takes trials of the named studies (of all, if none is named) until their budgets are used.

    forever: then waits for new ones. Raises WorkerError when a study has failed too often to go on.
    """
    objectives: dict[str, Objective] = {}
    while True:
        studies = [study for study in find_studies(database.engine, names) if is_open(database, study)]
        if not studies and not forever:
            return
        for study in studies:
            if study.name not in objectives:
                objectives[study.name] = load_objective(study.spec)
                check_fingerprints(database, study, objectives[study.name].fingerprints)
            budget.reap(database, study.study_id)
            trial_id = budget.claim(database, study.study_id, study.spec.search.may_start_from_baseline)
            if trial_id is not None:
                run_trial(database, study, trial_id, objectives[study.name], name, say)
                break
        else:
            time.sleep(IDLE_SECS)


def is_open(database: Database, study: Study) -> bool:
    """Whether trials of this study wait or run. Raises WorkerError if too many have failed."""
    counts = budget.count(database.engine, study.study_id)
    if counts.failed > FAILURES_ALWAYS_BORNE and counts.finished < study.spec.budget:
        _check_failures(database, study)
    return counts.waiting + counts.running > 0


def _check_failures(database: Database, study: Study) -> None:
    query = (
        sa.select(trials.c.number, trial_user_attributes.c.value_json)
        .join(trial_user_attributes, trial_user_attributes.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study.study_id, trial_user_attributes.c.key == "failure")
        .order_by(trials.c.number)
    )
    with database.engine.connect() as connection:
        failures = connection.execute(query).all()
    if len(failures) > max(FAILURES_ALWAYS_BORNE, study.spec.max_failed_share * study.spec.budget):
        number, text = failures[-1]
        last_line = json.loads(text).strip().splitlines()[-1]
        raise WorkerError(
            f"study '{study.name}' stopped: {len(failures)} trials failed, more than max_failed_share = "
            f"{study.spec.max_failed_share:g} of the budget allows; the last, trial {number}: {last_line}"
        )


def run_trial(database: Database, study: Study, trial_id: int, objective: Objective, worker: str, say: Say) -> None:
    """Runs a claimed trial to its end; whatever happens, its slot is used once or given out again."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        with _heartbeats(database, trial_id):
            trial, params = start_trial(database, study, trial_id)
            say(f"trial {trial.number} starts: {_listed(params)}")
            say(_pursue(database, study, trial, params, objective, worker))
    except UpdateFinishedTrialError:
        say("trial dropped: another worker has taken it over")
    except Exception:
        say(traceback.format_exc())
        budget.give_back(database, trial_id, "failure", traceback.format_exc())
    except BaseException:  # asked to stop: SIGINT, SIGTERM
        budget.give_back(database, trial_id, "interruption", "its worker was asked to stop")
        raise


def _pursue(
    database: Database, study: Study, trial: "optuna.Trial", params: Params, objective: Objective, worker: str
) -> str:
    """Takes measurements until the objective ends or the pruner says so, and records them; what happened, in a line."""
    from optuna.trial import TrialState

    baseline = bool(trial.user_attrs.get("baseline"))
    trial.set_user_attr("worker", worker)
    pruned = False
    measurement = None
    epochs = []
    for measurement in objective.run(params, baseline):
        trial.report(measurement.score, measurement.step)
        epochs.append({"epoch": measurement.step, "score": measurement.score, **measurement.parts})
        trial.set_user_attr("epochs", epochs)
        unfinished = measurement.step < study.spec.training.epochs  # nothing is saved by pruning after the last epoch
        pruned = trial.should_prune() and unfinished and not baseline
        if pruned:
            break
    if measurement is None:
        raise StudyError("the objective measured nothing")
    for key, value in measurement.attributes.items():
        trial.set_user_attr(key, value)
    if pruned:
        trial.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    else:
        record_constraints(database, study)
        trial.study.tell(trial, measurement.score, skip_if_finished=True)
    ended = "pruned" if pruned else "complete"
    return f"trial {trial.number} {ended} at epoch {measurement.step}: score {measurement.score:.4f}"


def _listed(params: Params) -> str:
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()
    )


@contextlib.contextmanager
def _heartbeats(database: Database, trial_id: int) -> Iterator[None]:
    """Beats in a thread while the block runs. A beat that fails is only late: the next one counts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(budget.HEARTBEAT_INTERVAL_SECS):
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                budget.beat(database, trial_id)

    thread = threading.Thread(target=run, name=f"heartbeats of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
