"""The main job, from a study file to the best configurations: check, submit, work here, print."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import click
import sqlalchemy as sa

from hpo import display
from hpo.errors import InputError, StoppedEarly, WorkerError
from hpo.launch.local import start_workers, stop_workers
from hpo.search.queries import status
from hpo.search.storage import DEFAULT_STORAGE, masked, open_database, parse_url
from hpo.search.study import Study, submit
from hpo.spec import Spec
from hpo.stopping import Stopped, stop_on_signals
from hpo.vision.images import load_images

LOGS = Path("hpo-logs")
SHOWN = 5


def run_study(spec: Spec, storage: str, workers: int) -> None:
    """Submits a study, works on it with so many processes until its budget is used, prints the best configurations."""
    url = parse_url(storage)
    _check_inputs(spec)
    database = open_database(url, create=True)
    study, new = submit(database, spec)
    counts = status(database.engine, study)
    if counts["waiting"] + counts["running"]:
        does = "submitted" if new else "goes on"
        count = "1 worker" if workers == 1 else f"{workers} workers"
        click.echo(f"study {study.name} {does}: budget {spec.budget}, {count}, logs in {_logs(study)}/", err=True)
        _work_here(database.engine, study, storage, workers)
    else:
        click.echo(f"study {study.name} is done: {counts['finished']} trials are finished", err=True)
    display.print_best(display.console(), database.engine, study, SHOWN)
    _print_next(study, storage)


def _check_inputs(spec: Spec) -> None:
    """Whatever is wrong with images or weights is said here, before anything is written to the database."""
    with display.StepProgress() as progress:
        images = load_images(spec.data, spec.model.input_size, spec.seed, progress)
    if spec.model.weights != "none":
        from hpo.vision.network import build_network, read_weights

        weights = read_weights(spec.model.name, spec.model.weights)
        build_network(spec.model.name, len(images.classes), weights, spec.model.input_size, frozen_layers=0, seed=0)


def _logs(study: Study) -> Path:
    return LOGS / study.spec.folder_name


def _work_here(engine: sa.Engine, study: Study, storage: str, count: int) -> None:
    """Shows progress until every worker has ended; one that ended with an error ends them all."""
    stop_on_signals()
    workers = start_workers(study.name, storage, count, _logs(study))

    def working() -> bool:
        codes = [worker.process.poll() for worker in workers]
        return None in codes and all(code in (None, 0) for code in codes)

    try:
        display.follow(engine, study, working)
    except Stopped:
        click.echo("stopping: each worker gives its slot back", err=True)
        raise StoppedEarly("stopped before the budget was used; the same command goes on") from None
    finally:
        stop_workers(workers)
    failed = next((worker for worker in workers if worker.process.returncode != 0), None)
    if failed is not None:
        code, reason = failed.process.returncode, failed.last_line().removeprefix("hpo: ")
        if code == InputError.exit_code:
            raise InputError(reason)
        raise WorkerError(
            f"a worker ended with exit code {code}: {reason} (its log: {failed.log}); the same command goes on"
        )


def _path_of_hpo() -> str:
    """Below the current folder as a relative path, elsewhere as an absolute one."""
    path = Path(sys.executable).parent / "hpo"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print_next(study: Study, storage: str) -> None:
    """What to type now; the storage is repeated where it is neither the default nor in the environment."""
    program = "hpo" if shutil.which("hpo") else _path_of_hpo()
    name = shlex.quote(study.name)
    given = storage != DEFAULT_STORAGE and os.environ.get("HPO_STORAGE") != storage
    where = f" --storage {shlex.quote(masked(parse_url(storage)))}" if given else ""
    click.echo("\nNext:", err=True)
    suggestions = {
        f"{program} top {name} -n 10{where}": "more of them; --json for programs",
        f"{program} best {name} --toml{where}": "the best as a study file that `hpo run` takes",
        f"{program} status{where}": "all studies of this database",
    }
    width = max(map(len, suggestions))
    for command, does in suggestions.items():
        click.echo(f"  {command:<{width}}   {does}", err=True)
