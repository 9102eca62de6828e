"""The command `hpo`: parses, calls, prints. Imports lazily, so that only commands that train load torch.

stdout is data, stderr is talk. Exit codes: hpo.errors.
"""

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hpo import __version__
from hpo.cli.groups import Commands
from hpo.cli.options import open_study, spec_arguments, storage_option, studies_argument, workers_option
from hpo.cli.read import READING_COMMANDS
from hpo.errors import HpoError, StorageError
from hpo.stopping import INTERRUPTED_EXIT_CODE

if TYPE_CHECKING:
    from hpo.study_file.spec import Spec


def main() -> NoReturn:
    """Runs a command; every error that a user can mend is one line on stderr."""
    try:
        cli(prog_name="hpo", standalone_mode=False)
    except HpoError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED_EXIT_CODE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"no space left for what is written: {error.filename or 'the output'}", HpoError.exit_code)
    except Exception as error:
        _fail_if_of_database(error)
        raise
    sys.exit(0)


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"hpo: {' '.join(message.split())}", err=True)
    _forget_what_cannot_be_written()
    sys.exit(exit_code)


def _forget_what_cannot_be_written() -> None:
    """What is still in a buffer before a full disk, for which Python would end with a traceback of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_if_of_database(error: Exception) -> None:
    """A server that is gone, a file that was deleted or is full: one line, without SQL."""
    from sqlalchemy.exc import SQLAlchemyError

    from hpo.search.sql.outages import first_line

    if isinstance(error, SQLAlchemyError):
        _fail(f"the database failed: {first_line(error)}", StorageError.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hpo")
def cli() -> None:
    """Find image classifiers that stay right when their input is perturbed.

    A study file says what to search; `hpo run` searches it on this machine. Any number of `hpo worker` on any number
    of machines can share the work through one database.
    """


@cli.command()
@spec_arguments
@storage_option
@workers_option
def run(study_file: Path, overrides: Sequence[str], storage: str, workers: int | None) -> None:
    """Submit a study, work on it here, print the best.

    Works until the budget is used. Shows progress, then prints the best configurations. Run again to go on where it
    stopped. Relative paths in the study file are relative to the current folder.
    """
    from hpo.cli.run_here import run_study
    from hpo.study_file.reading import load_spec

    run_study(load_spec(study_file, overrides), storage, workers)


@cli.command()
@click.argument("study_file", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=None,
    help="A folder (or zip) with a folder a class, or in TinyImageNet's layout. Default: scikit-learn's digits.",
)
def new(study_file: Path, images: Path | None) -> None:
    """Write a study file to begin with, for images of yours.

    Looks at how many classes and images there are, and how large, and writes a file that `hpo run` takes as it is, with
    the keys that matter and what they mean. A file that is there is left as it is.
    """
    from hpo.cli.new_study import write_study_file

    found = write_study_file(study_file, images)
    click.echo(f"{study_file} written for {found}. Next: hpo run {shlex.quote(str(study_file))}", err=True)


@cli.command()
def schema() -> None:
    """Print the study file's JSON schema, for editors.

    With the perturbations of packages that are installed here. In a study file, for editors with Taplo:
    `#:schema study.schema.json` in its first line.
    """
    import json

    from hpo.study_file.schema import study_schema

    click.echo(json.dumps(study_schema(), indent=2))


@cli.command()
@spec_arguments
@storage_option
def submit(study_file: Path, overrides: Sequence[str], storage: str) -> None:
    """Put a study into the database, for workers to take.

    Saying it twice changes nothing; a change to what is already searched is refused.
    """
    from hpo.search.sql.storage import create_database, parse_url
    from hpo.search.sql.studies import submit as submit_study
    from hpo.study_file.reading import load_spec

    spec = load_spec(study_file, overrides)
    study, new = submit_study(create_database(parse_url(storage)), spec)
    said = "submitted" if new else "was submitted before; nothing changed"
    click.echo(
        f"study {study.name} {said}: budget {study.budget}. Start workers with: {_launch_command(study.name)}",
        err=True,
    )


def _launch_command(study: str) -> str:
    return f"hpo launch {shlex.quote(study)} --workers 2"


@cli.command()
@storage_option
def init(storage: str) -> None:
    """Make the tables and views, where they are missing.

    `hpo run` and `hpo submit` do so too. For a database that others fill, or that readers are given rights to.
    """
    from hpo.search.sql.storage import create_database, masked, parse_url

    url = parse_url(storage)
    create_database(url).dispose()
    click.echo(f"{masked(url)} is ready", err=True)


@cli.command()
@studies_argument
@storage_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    envvar="HPO_THREADS",
    default=None,
    help="CPU threads of this worker. Default: all cores.",
)
@click.option("--forever", is_flag=True, help="Wait for new studies instead of ending.")
@click.option(
    "--exit-code-when-stopped",
    metavar="CODE",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    envvar="HPO_EXIT_CODE_WHEN_STOPPED",
    help="For schedulers that start again what ended with another code than 0.",
)
@click.option("--supervised", is_flag=True, hidden=True, help="End when stdin does: `hpo launch` says this.")
def worker(
    studies: Sequence[str],
    storage: str,
    threads: int | None,
    forever: bool,
    exit_code_when_stopped: int,
    supervised: bool,
) -> None:
    """Take trials of studies until their budgets are used.

    Of all studies in the database, if none is named. SIGTERM or Ctrl-C: the running trial's slot is given back, to go
    on from its last epoch elsewhere, and the worker ends within 10 seconds.
    """
    from hpo.search.sql.network_drive import check_network_drive
    from hpo.search.sql.storage import open_engine, parse_url
    from hpo.search.worker import work
    from hpo.stopping import Stopped, stop_on_signals, stop_with_parent
    from hpo.workers.local import FLEET, worker_name

    stop_on_signals(exit_for_certain=True, exit_code=exit_code_when_stopped)
    name = worker_name(os.getpid(), os.environ.get(FLEET, ""))
    threads = threads or _threads_of_container()
    try:
        if supervised:
            stop_with_parent()
        engine = open_engine(parse_url(storage))
        if not supervised:  # else `hpo launch` has looked
            check_network_drive(engine, click.echo)
        work(engine, studies, _objective_loader(threads), name, click.echo, forever)
    except Stopped:
        with contextlib.suppress(OSError):  # a log on a full disk
            click.echo(f"worker {name} stopped; what it ran, if anything, was given back")
        sys.exit(exit_code_when_stopped)


def _threads_of_container() -> int | None:
    """None where PyTorch's own choice is right: it does not know of a container's share of the cores."""
    from hpo.cores import cores, cores_of_machine

    return cores() if cores() < cores_of_machine() else None


def _objective_loader(threads: int | None) -> Callable[["Spec"], Any]:
    def load(spec: "Spec") -> Any:
        from hpo.artifacts import open_artifacts
        from hpo.errors import InputError
        from hpo.search.sql.attributes import SPLIT_KEY
        from hpo.workers.machine import may_have_gpu
        from hpo.workers.memory import check_memory

        try:
            from hpo.objectives.robust_accuracy import RobustAccuracy

            objective = RobustAccuracy(spec, threads, open_artifacts())
        except (ImportError, RuntimeError) as error:  # of this machine: no trial is to count as failed
            raise InputError(f"PyTorch does not work on this machine: {error}") from error
        if not may_have_gpu():
            check_memory(spec, objective.about[SPLIT_KEY]["train"], 1, click.echo)
        return objective

    return load


@cli.command()
@studies_argument
@storage_option
@workers_option
@click.option("--forever", is_flag=True, help="Wait for new studies instead of ending.")
def launch(studies: Sequence[str], storage: str, workers: int | None, forever: bool) -> None:
    """Keep workers at work on submitted studies.

    Of all studies in the database, if none is named. Each worker has its share of the cores, or a GPU; one that dies
    is started again. Ends when the budgets are used.
    """
    from hpo.cli.run_here import launch as launch_workers

    launch_workers(studies, storage, workers, forever)


@cli.command()
@click.argument("study")
@storage_option
def stop(study: str, storage: str) -> None:
    """Stop a study: its workers, wherever they are, give back what they run.

    `hpo resume` lets it go on.
    """
    from hpo.search.sql import heartbeats
    from hpo.search.sql.claims import count
    from hpo.search.sql.studies import stop as stop_study

    engine, found = open_study(study, storage)
    counts = count(engine, found.study_id)
    if counts.finished >= found.budget:
        said = f"has used its budget of {found.budget}; nothing is left to stop"
    elif stop_study(engine, found, "`hpo stop` was said"):
        said = (
            f"is stopped; what runs now ({counts.running}) is given back within "
            f"{heartbeats.HEARTBEAT_INTERVAL_SECS:g} s. `hpo resume {study}` lets it go on from there"
        )
    else:
        said = f"was stopped before; `hpo resume {study}` lets it go on"
    click.echo(f"study {study} {said}", err=True)


@cli.command()
@click.argument("study")
@storage_option
def resume(study: str, storage: str) -> None:
    """Let a stopped study go on, also one that stopped because trials failed."""
    from hpo.search.sql.studies import resume as resume_study

    engine, found = open_study(study, storage)
    said = "goes on" if resume_study(engine, found) else "was not stopped; nothing changed"
    click.echo(f"study {study} {said}. Start workers with: {_launch_command(study)}", err=True)


@cli.command()
@click.argument("study")
@click.option("--budget", type=click.IntRange(1, 1_000_000), required=True, help="The new budget, in all.")
@storage_option
def extend(study: str, budget: int, storage: str) -> None:
    """Raise a study's budget, also a finished one's."""
    from hpo.search.sql.studies import extend as extend_study

    engine, found = open_study(study, storage)
    added = extend_study(engine, found, budget)
    said = f"{added} {'trial' if added == 1 else 'trials'} added" if added else "nothing changed"
    start = f". Start workers with: {_launch_command(study)}" if added else ""
    click.echo(f"study {study} has a budget of {budget}: {said}{start}", err=True)


@cli.command()
@click.option("--cache", is_flag=True, required=True, help="The decoded images.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    envvar="HPO_DATA_ROOT",
    default=Path("~/.cache/hpo"),
    show_default=True,
    show_envvar=True,
    help="The folder of a study file's data.root.",
)
def clean(cache: bool, root: Path) -> None:
    """Remove decoded images from this machine.

    They are made again when a study needs them. Archives and weights that were downloaded stay.
    """
    from hpo.vision.data.disk import remove_decoded_images

    count, size = remove_decoded_images(root.expanduser())
    sets = "1 image set" if count == 1 else f"{count} image sets"
    click.echo(f"{sets} removed from {root}/images, {size / 1e6:,.1f} MB", err=True)


for command in READING_COMMANDS:
    cli.add_command(command)
