"""A study's life as workers write it: claims, steps, pauses, ends; and the databases that it is in."""

from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy as sa
from free_objective import FreeObjective
from optuna.distributions import IntDistribution
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from hpo.doors.objective import BelowBaseline, Measurement
from hpo.doors.parameters import Params
from hpo.search.plan import Plan
from hpo.search.sql import claims, rungs
from hpo.search.sql.claims import Claim
from hpo.search.sql.fence import Hold, token_of
from hpo.search.sql.reports import finish, record_params, record_step
from hpo.search.sql.storage import create_database
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.tables import trials
from hpo.search.sql.url import parse_url
from hpo.search.worker import work
from hpo.study_file.spec import Spec

OPENED: list[Any] = []
"""Databases to be closed when the test ends."""


def open_fresh(url: str | sa.URL) -> sa.Engine:
    """The database as another process would open it; closed when the test ends."""
    made = create_database(parse_url(url) if isinstance(url, str) else url)
    OPENED.append(made)
    return made


def optuna_storage(url: str | sa.URL) -> RDBStorage:
    """The database as Optuna's own API sees it, with nothing cached; closed when the test ends."""
    parsed = parse_url(url) if isinstance(url, str) else url
    made = RDBStorage(parsed.render_as_string(hide_password=False), engine_kwargs={"poolclass": NullPool})
    OPENED.append(made)
    return made


def run(engine: sa.Engine, spec: Spec, fault: Callable[[Params], None] | None = None) -> optuna.Study:
    """Submits and works until the end; the study as Optuna loads it in another process, with nothing cached."""
    submit(engine, spec)
    work(engine, [spec.name], lambda given, store: FreeObjective(given, fault=fault), "worker", lambda text: None)
    return optuna.load_study(study_name=spec.name, storage=optuna_storage(engine.url))


def claim_next(
    engine: sa.Engine,
    study: Study,
    worker: str,
    baseline_alone: bool = False,
    token: str | None = None,
    most: int | None = None,
) -> Claim | None:
    """Claims as a worker would."""
    start_of = Plan(study.spec, study.first).start_of
    return claims.claim(engine, study.key, start_of, worker, baseline_alone, token, most)


def report(engine: sa.Engine, hold: Hold, step: int, score: float) -> None:
    """Reports a step as a worker would."""
    reports = [{"step": n, "score": score, "clean": score} for n in range(1, step + 1)]
    record_step(engine, hold, Measurement(step, score, {"clean": score}), reports)


def pause(engine: sa.Engine, study_id: int, hold: Hold, step: int, score: float) -> list[int]:
    """Pauses a trial after a step as a worker would."""
    return rungs.pause(engine, study_id, hold, Measurement(step, score, {"clean": score}))


def end(
    engine: sa.Engine, hold: Hold, state: str, score: float, parts: dict[str, float] | None = None, drop: float = 0.02
) -> None:
    """Ends a trial as a worker would, with a constraint if it has parts."""
    constraints = {"clean_drop": BelowBaseline("clean", drop)} if parts else {}
    finish(engine, hold, state, score, Measurement(1, score, parts or {}, constraints=constraints))


def states(study: optuna.Study) -> list[str]:
    """What became of the trials, in the order of their numbers."""
    return [trial.state.name for trial in study.trials]


def running(engine: sa.Engine) -> Hold:
    """The one trial that runs, as its worker holds it."""
    with engine.connect() as connection:
        trial_id = connection.execute(sa.select(trials.c.trial_id).where(trials.c.state == "RUNNING")).scalar_one()
        return Hold(trial_id, token_of(connection, trial_id))


def give_parameter(engine: sa.Engine, hold: Hold) -> None:
    """Gives a claimed trial a parameter, as if it had started."""
    record_params(engine, hold, {"batch_size": 16}, {"batch_size": IntDistribution(16, 64)})
