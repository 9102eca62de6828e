"""The commands that make studies and work on them. Only `hpo worker` loads torch, and `hpo run` to check weights."""

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from hpo.cli.options import launch_command, spec_arguments, storage_option, studies_argument, workers_option


@click.command()
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


@click.command()
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


@click.command()
def schema() -> None:
    """Print the study file's JSON schema, for editors.

    With the perturbations of packages that are installed here. In a study file, for editors with Taplo:
    `#:schema study.schema.json` in its first line.
    """
    import json

    from hpo.study_file.schema import study_schema

    click.echo(json.dumps(study_schema(), indent=2))


@click.command()
@spec_arguments
@storage_option
def submit(study_file: Path, overrides: Sequence[str], storage: str) -> None:
    """Put a study into the database, for workers to take.

    Saying it twice changes nothing; a change to what is already searched is refused.
    """
    from hpo.search.sql.storage import create_database
    from hpo.search.sql.submitting import submit as submit_study
    from hpo.search.sql.url import parse_url
    from hpo.study_file.reading import load_spec

    spec = load_spec(study_file, overrides)
    study, new = submit_study(create_database(parse_url(storage)), spec)
    said = "submitted" if new else "was submitted before; nothing changed"
    click.echo(
        f"study {study.name} {said}: budget {study.budget}. Start workers with: {launch_command(study.name)}",
        err=True,
    )


@click.command()
@storage_option
def init(storage: str) -> None:
    """Make the tables and views, where they are missing.

    `hpo run` and `hpo submit` do so too. For a database that others fill, or that readers are given rights to.
    """
    from hpo.search.sql.storage import create_database
    from hpo.search.sql.url import masked, parse_url

    url = parse_url(storage)
    create_database(url).dispose()
    click.echo(f"{masked(url)} is ready", err=True)


@click.command()
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

    Of all studies in the database, if none is named. SIGTERM or Ctrl-C: the running trial is given back, to go
    on from its last epoch elsewhere, and the worker ends within 10 seconds.
    """
    from hpo.artifacts import open_artifacts
    from hpo.search.loading import load_objective
    from hpo.search.sql.network_drive import check_network_drive
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import parse_url
    from hpo.search.worker import work
    from hpo.stopping import Stopped, stop_on_signals, stop_with_parent
    from hpo.workers.launcher import LAUNCH_ID, worker_name

    stop_on_signals(exit_for_certain=True, exit_code=exit_code_when_stopped)
    name = worker_name(os.getpid(), os.environ.get(LAUNCH_ID, ""))
    threads = threads or _threads_of_container()
    try:
        if supervised:
            stop_with_parent()
        engine = open_engine(parse_url(storage))
        if not supervised:  # else `hpo launch` has looked
            check_network_drive(engine, click.echo)
        load = partial(load_objective, threads=threads, say=click.echo)
        work(engine, studies, load, name, click.echo, forever, open_artifacts())
    except Stopped:
        with contextlib.suppress(OSError):  # a log on a full disk
            click.echo(f"worker {name} stopped; what it ran, if anything, was given back")
        sys.exit(exit_code_when_stopped)


def _threads_of_container() -> int | None:
    """None where PyTorch's own choice is right: it does not know of a container's share of the cores."""
    from hpo.cores import cores, cores_of_machine

    return cores() if cores() < cores_of_machine() else None


@click.command()
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


RUN_COMMANDS = (new, schema, run, init, submit, launch, worker)
