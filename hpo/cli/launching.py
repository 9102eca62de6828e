"""What `hpo run` and `hpo launch` share: how many workers, workers at work, and how far a study is."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.search.sql.counts import count
from hpo.search.sql.dead_workers import give_back_trials_of
from hpo.search.sql.storage import open_engine
from hpo.search.sql.studies import Study
from hpo.search.sql.url import parse_url
from hpo.stopping import Stopped
from hpo.study_file.images import ImageSpec
from hpo.study_file.spec import Spec
from hpo.workers.launcher import Cluster, Launch, Launcher, launcher_named
from hpo.workers.machine import how_many_workers, may_have_gpu
from hpo.workers.memory import MIN_MIB_PER_WORKER, check_memory, max_mib


def logs_folder() -> Path:
    return Path(os.environ.get("HPO_LOGS") or "hpo-logs")


def launch_for(
    names: Sequence[str],
    storage: str,
    workers: int | None,
    logs: Path,
    forever: bool = False,
    cluster: Cluster | None = None,
) -> Launch:
    say = partial(click.echo, err=True)
    return Launch(names, workers, storage, logs, partial(_give_back_trials_of, storage), say, forever, cluster)


@contextmanager
def started(launch: Launch) -> Iterator[Launcher]:
    """Workers at work. A signal stops them and ends the block."""
    launcher = launcher_named("ray" if launch.cluster else "local")
    try:
        launcher.start(launch)
        yield launcher
    except Stopped:
        click.echo("stopping: the workers release their trials", err=True)
    finally:
        launcher.stop()


def _give_back_trials_of(storage: str, worker: str, out_of_memory: bool) -> bool:
    try:
        engine = open_engine(parse_url(storage))
        try:
            return give_back_trials_of(engine, worker, out_of_memory)
        finally:
            engine.dispose()
    except (
        StorageError,
        sa.exc.SQLAlchemyError,
    ):  # the database is unavailable; heartbeats will tell that the worker is gone
        return True


def workers_for(studies: Sequence[tuple[Spec, int | None]], requested: int | None) -> int:
    """The number asked for, else as many as fit in memory; warns if memory may not suffice. Raises InputError.

    studies: each with its number of training images, if known.
    """
    on_images = [(spec, images) for spec, images in studies if isinstance(spec, ImageSpec)]
    needed = max((max_mib(spec, images) for spec, images in on_images), default=MIN_MIB_PER_WORKER)
    workers = how_many_workers(requested, needed)
    if not may_have_gpu():
        for spec, images in on_images:
            check_memory(spec, images, workers, partial(click.echo, err=True))
    return workers


def counted_workers(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def report_progress(engine: sa.Engine, study: Study) -> None:
    finished = count(engine, study.study_id).finished
    if study.stopped and finished < study.budget:
        outcome = f"is {study.why_stopped}"
    elif finished < study.budget:
        outcome = f"has {finished} of {study.budget} trials finished; run the same command again to continue"
    else:
        outcome = f"is done: {'its trial is' if study.budget == 1 else f'all {study.budget} trials are'} finished"
    click.echo(f"study {study.name} {outcome}", err=True)
