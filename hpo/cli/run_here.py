"""The commands that start workers on this machine: `hpo run` and `hpo launch`."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.artifacts import open_artifacts
from hpo.cli import progress, tables
from hpo.counted import counted
from hpo.doors.network import freezable_layers
from hpo.errors import InputError, StorageError, StudyError
from hpo.search.sql import heartbeats
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.counts import count
from hpo.search.sql.dead_workers import give_back_trials_of
from hpo.search.sql.network_drive import check_network_drive
from hpo.search.sql.outages import outlast
from hpo.search.sql.queries import best_trials
from hpo.search.sql.status import read_split
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.studies import Study, find_studies, open_studies
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import DEFAULT_STORAGE, masked, parse_url
from hpo.stopping import Stopped, stop_on_signals
from hpo.study_file.images import ImageSpec
from hpo.study_file.spec import Spec
from hpo.vision.data.images import load_images
from hpo.vision.data.listing import by_suffix
from hpo.vision.weights_file import weights_file
from hpo.workers.launcher import Launch, Launcher, launcher_named
from hpo.workers.machine import check_workers, how_many_workers, may_have_gpu
from hpo.workers.memory import MIN_MIB_PER_WORKER, check_memory, max_mib

SHOWN = 5
TEND_SECS = 0.5
LOOK_SECS = 2.0


def run_study(spec: Spec, storage: str, workers: int | None) -> None:
    """Submits a study, runs it with this many worker processes until its budget is used up and prints the best trials.

    workers: None for as many as this machine has room for.
    """
    check_workers(workers)  # before anything slow
    url = parse_url(storage)
    workers = how_many(spec, workers)
    open_artifacts().check()
    engine = create_database(url)
    check_network_drive(engine, partial(click.echo, err=True))
    study, new = submit(engine, spec)
    run_until_done(engine, study, storage, workers, new)
    _print_end(engine, study, storage)


def how_many(spec: Spec, workers: int | None) -> int:
    """Looks at images, weights and network: what is wrong is said before the database is written. How many workers to
    start here. Raises InputError.
    """
    images = _prepare_images(spec) if isinstance(spec, ImageSpec) else None
    return _workers_for([(spec, images)], workers)


def run_until_done(engine: sa.Engine, study: Study, storage: str, workers: int, new: bool) -> None:
    """Runs a study here, with progress, until its budget is used up or a signal stops it. new: whether it was just
    submitted. Raises StudyError if it is stopped.
    """
    if study.rule:  # all that its study file asks for was done
        return
    if study.stopped:
        raise StudyError(
            f"study '{study.name}' is stopped: {study.stopped}; to continue it, first run: {study.resume_command}"
        )
    heartbeats.reap(engine, study.study_id)
    if count(engine, study.study_id).finished < study.budget:
        logs = _logs() / study.spec.folder_name
        outcome = "submitted" if new else "continues"
        counted = f"budget {study.budget}, {_counted(workers)}, logs in {logs}/"
        click.echo(f"study {study.name} {outcome}: {counted}", err=True)
        stop_on_signals()
        with _started(_launch([study.name], storage, workers, logs)) as launcher:
            progress.follow(engine, study, launcher.tend)


def _prepare_images(spec: ImageSpec) -> int:
    """How many images there are to train on. Raises InputError if images, weights or network are at fault."""
    weights_file(spec.model.weights)  # a missing one is said before images are downloaded for it
    with progress.StepProgress() as steps:
        images = load_images(spec.data, spec.model.input_size, spec.split_seed, steps)
    if images.skipped:
        click.echo(f"{counted(len(images.skipped), 'image')} skipped: cannot be decoded", err=True)
    if images.left_out:
        others = counted(sum(images.left_out.values()), "file")
        click.echo(f"{others} of unsupported types skipped: {by_suffix(images.left_out)}", err=True)
    model = spec.model
    if model.weights != "none" or freezable_layers(model.name) is None:
        from hpo.vision.classifier import build_network, read_weights

        most = max(value for value in spec.search.values("frozen_layers") if isinstance(value, int))
        weights = read_weights(model.name, model.weights)
        build_network(model.name, len(images.classes), weights, model.input_size, most, seed=0)
    return len(images.train)


def launch(names: Sequence[str], storage: str, workers: int | None, forever: bool) -> None:
    """Keeps this many workers running until the budgets of these studies (all, if none is named) are used up.

    forever: then waits for new studies.
    """
    check_workers(workers)
    engine = open_engine(parse_url(storage))
    studies = find_studies(engine, names, partial(click.echo, err=True))
    for study in studies if names else ():
        study.refuse()
    check_network_drive(engine, partial(click.echo, err=True))
    splits = [(study.spec, read_split(engine, study)) for study in (studies if names else ())]
    workers = _workers_for([(spec, split.train if split else None) for spec, split in splits], workers)
    logs = _logs() / studies[0].spec.folder_name if len(names) == 1 else _logs()
    click.echo(f"{_counted(workers)} for {', '.join(names) or 'all studies'}, logs in {logs}/", err=True)
    stop_on_signals()
    try:
        with _started(_launch(names, storage, workers, logs, forever)) as launcher:
            if len(names) == 1 and not forever:
                progress.follow(engine, studies[0], launcher.tend)
            else:
                _follow_all(engine, names, launcher.tend, logs)
    except InputError:  # from workers that did not find their study
        if deleted := _deleted(engine, studies if names else ()):
            verb = "was" if len(deleted) == 1 else "were"
            raise StudyError(f"{', '.join(deleted)} {verb} deleted while workers were running") from None
        raise
    for study in find_studies(engine, names):
        _report_progress(engine, study)


def _follow_all(engine: sa.Engine, names: Sequence[str], working: Callable[[], bool], logs: Path) -> None:
    """Reports the trials of all studies as they end, and points to the logs if none runs, until not `working()`."""
    say = partial(click.echo, err=True)
    followed: dict[StudyKey, progress.EndedTrials] = {}
    looked_at, reported_idle, ran_at = 0.0, False, time.monotonic()
    while True:
        still_working = working()  # asked before reading the database, so that the last trials are not missed
        if time.monotonic() - looked_at > LOOK_SECS or not still_working:
            looked_at = time.monotonic()
            found = outlast(partial(open_studies, engine, names), say)
            still_open = [study for study, _ in found]
            if not found or any(counts.running for _, counts in found):
                ran_at, reported_idle = time.monotonic(), False
            elif time.monotonic() - ran_at > progress.QUIET_SECS and not reported_idle:
                reported_idle = True
                open_names = ", ".join(study.name for study in still_open)
                say(f"no trial of {open_names} is running; see the logs in {logs}/ for the reason")
            for study in still_open:
                if study.key not in followed:
                    followed[study.key] = progress.EndedTrials(engine, study, say, f"{study.name}: ")
            for trials in followed.values():
                trials.report_new()
            ended = [followed.pop(key).study for key in set(followed).difference(study.key for study in still_open)]
            for name in _deleted(engine, ended):
                say(f"study {name} was deleted while workers were running")
        if not still_working:
            return
        time.sleep(TEND_SECS)


def _deleted(engine: sa.Engine, studies: Sequence[Study]) -> list[str]:
    """The names of those studies that are no longer in the database."""
    if not studies:
        return []
    present = {study.key for study in outlast(partial(find_studies, engine), partial(click.echo, err=True))}
    return [study.name for study in studies if study.key not in present]


def _logs() -> Path:
    return Path(os.environ.get("HPO_LOGS") or "hpo-logs")


def _launch(names: Sequence[str], storage: str, workers: int, logs: Path, forever: bool = False) -> Launch:
    say = partial(click.echo, err=True)
    return Launch(names, workers, storage, logs, partial(_give_back_trials_of, storage), say, forever)


@contextmanager
def _started(launch: Launch) -> Iterator[Launcher]:
    """Workers at work. A signal stops them and ends the block."""
    launcher = launcher_named("local")
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


def _workers_for(studies: Sequence[tuple[Spec, int | None]], requested: int | None) -> int:
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


def _counted(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _print_end(engine: sa.Engine, study: Study, storage: str) -> None:
    """The best configurations, the progress of the study and what to do next."""
    study = outlast(partial(find_studies, engine, [study.name]), partial(click.echo, err=True))[0]
    results = best_trials(engine, study.name, SHOWN)
    if results:
        tables.print_best(tables.console(), engine, study, results)
    else:
        click.echo(f"study {study.name} has no complete trial yet", err=True)
    _report_progress(engine, study)
    if results:
        _print_next(study, storage)


def _report_progress(engine: sa.Engine, study: Study) -> None:
    finished = count(engine, study.study_id).finished
    if study.stopped and finished < study.budget:
        outcome = f"is {study.why_stopped}"
    elif finished < study.budget:
        outcome = f"has {finished} of {study.budget} trials finished; run the same command again to continue"
    else:
        outcome = f"is done: {'its trial is' if study.budget == 1 else f'all {study.budget} trials are'} finished"
    click.echo(f"study {study.name} {outcome}", err=True)


def _path_of_hpo() -> str:
    """Relative if it is below the current folder, else absolute."""
    path = Path(sys.executable).parent / "hpo"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print_next(study: Study, storage: str) -> None:
    """Suggests commands, with --storage if the storage is neither the default nor set in the environment."""
    program = "hpo" if shutil.which("hpo") else _path_of_hpo()
    name = shlex.quote(study.name)
    given = storage != DEFAULT_STORAGE and os.environ.get("HPO_STORAGE") != storage
    secret = masked(parse_url(storage)) != storage
    where = f" --storage {'…' if secret else shlex.quote(storage)}" if given else ""
    click.echo("\nNext:", err=True)
    suggestions = {
        f"{program} top {name} -n 10{where}": "more of the best configurations; --json for programs",
        f"{program} best {name} --toml{where}": "the best one as a study file, for `hpo run`",
        f"{program} dashboard{where}": "a web page with its trials, and pictures of the best",
        f"{program} confirm {name}{where}": "what holds of it, on fresh seeds and locked test images",
        f"{program} report {name}{where}": "a page that says what was found",
    }
    width = max(map(len, suggestions))
    for command, purpose in suggestions.items():
        click.echo(f"  {command:<{width}}   {purpose}", err=True)
