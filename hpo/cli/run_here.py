"""`hpo run`: a study from its file to the best configurations, on this machine."""

import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.artifacts import open_artifacts
from hpo.cli import progress, tables
from hpo.cli.launching import counted_workers, launch_for, logs_folder, report_progress, started, workers_for
from hpo.counted import counted
from hpo.doors.network import freezable_layers
from hpo.errors import StudyError
from hpo.search.sql import heartbeats
from hpo.search.sql.counts import count
from hpo.search.sql.network_drive import check_network_drive
from hpo.search.sql.outages import outlast
from hpo.search.sql.queries import best_trials
from hpo.search.sql.storage import create_database
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import DEFAULT_STORAGE, masked, parse_url
from hpo.stopping import stop_on_signals
from hpo.study_file.images import ImageSpec
from hpo.study_file.spec import Spec
from hpo.vision.data.images import load_images
from hpo.vision.data.listing import by_suffix
from hpo.vision.weights_file import weights_file
from hpo.workers.machine import check_workers

SHOWN = 5


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
    return workers_for([(spec, images)], workers)


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
        logs = logs_folder() / study.spec.folder_name
        outcome = "submitted" if new else "continues"
        counted = f"budget {study.budget}, {counted_workers(workers)}, logs in {logs}/"
        click.echo(f"study {study.name} {outcome}: {counted}", err=True)
        stop_on_signals()
        with started(launch_for([study.name], storage, workers, logs)) as launcher:
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


def _print_end(engine: sa.Engine, study: Study, storage: str) -> None:
    """The best configurations, the progress of the study and what to do next."""
    study = outlast(partial(find_studies, engine, [study.name]), partial(click.echo, err=True))[0]
    results = best_trials(engine, study.name, SHOWN)
    if results:
        tables.print_best(tables.console(), engine, study, results)
    else:
        click.echo(f"study {study.name} has no complete trial yet", err=True)
    report_progress(engine, study)
    if results:
        _print_next(study, storage)


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
