"""The commands that create studies and run their trials."""

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
    """Submit a study, run it here and print the best.

    Runs until the budget is used up. Shows progress, then prints the best configurations. If it was interrupted, run
    the same command again to continue. Relative paths in the study file are relative to the current folder.
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
    help="A folder or zip file with one subfolder per class, or in TinyImageNet's layout. Default: scikit-learn's "
    "digits.",
)
def new(study_file: Path, images: Path | None) -> None:
    """Write a first study file for your images.

    Counts the classes and images, measures some of them, and writes a file that `hpo run` accepts as it is, with the
    most important keys explained. Never overwrites a file.
    """
    from hpo.cli.new_study import write_study_file

    found = write_study_file(study_file, images)
    click.echo(f"wrote {study_file} for {found}. Next: hpo run {shlex.quote(str(study_file))}", err=True)


@click.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors.

    Includes the perturbations of installed packages. For editors that use Taplo, start the study file with the line
    `#:schema study.schema.json`.
    """
    import json

    from hpo.study_file.schema import study_schema

    click.echo(json.dumps(study_schema(), indent=2))


@click.command()
@spec_arguments
@storage_option
def submit(study_file: Path, overrides: Sequence[str], storage: str) -> None:
    """Add a study to the database, for workers to run.

    Submitting the same study again changes nothing; submitting it with changes is refused.
    """
    from hpo.search.sql.storage import create_database
    from hpo.search.sql.submitting import submit as submit_study
    from hpo.search.sql.url import parse_url
    from hpo.study_file.reading import load_spec

    spec = load_spec(study_file, overrides)
    study, new = submit_study(create_database(parse_url(storage)), spec)
    outcome = "submitted" if new else "was submitted before; nothing changed"
    click.echo(
        f"study {study.name} {outcome}: budget {study.budget}. Start workers with: {launch_command(study.name)}",
        err=True,
    )


@click.command()
@storage_option
def init(storage: str) -> None:
    """Create missing tables and views in the database.

    `hpo run` and `hpo submit` do this too. Useful on its own when other users will submit the studies, or before
    granting readers access.
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
    help="CPU threads for this worker. Default: all cores.",
)
@click.option("--forever", is_flag=True, help="Wait for new studies instead of exiting.")
@click.option(
    "--exit-code-when-stopped",
    metavar="CODE",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    envvar="HPO_EXIT_CODE_WHEN_STOPPED",
    help="Exit code after SIGTERM or Ctrl-C, for schedulers that restart only what exits with a code other than 0.",
)
@click.option("--supervised", is_flag=True, hidden=True, help="End when stdin is closed; used by `hpo launch`.")
def worker(
    studies: Sequence[str],
    storage: str,
    threads: int | None,
    forever: bool,
    exit_code_when_stopped: int,
    supervised: bool,
) -> None:
    """Run trials of studies until their budgets are used up.

    Of all studies in the database if none is named. On SIGTERM or Ctrl-C the worker releases its running trial, which
    another worker can continue from its last epoch, and exits within 10 seconds.
    """
    from hpo.artifacts import open_artifacts
    from hpo.errors import HpoError
    from hpo.log import about, is_json, log
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
        if not supervised:  # otherwise `hpo launch` has checked already
            check_network_drive(engine, log)
        load = partial(load_objective, threads=threads, say=log)
        with about(worker=name):
            work(engine, studies, load, name, log, forever, open_artifacts())
    except Stopped:
        with contextlib.suppress(OSError):  # a log on a full disk
            log(f"worker {name} stopped; its trial, if any, was released")
        sys.exit(exit_code_when_stopped)
    except HpoError as error:
        if not is_json():
            raise
        log(str(error), "error")
        sys.exit(error.exit_code)


def _threads_of_container() -> int | None:
    """The container's share of the cores, which PyTorch does not know; None if that is all of them."""
    from hpo.cores import cores, cores_of_machine

    return cores() if cores() < cores_of_machine() else None


@click.command()
@studies_argument
@storage_option
@workers_option
@click.option("--forever", is_flag=True, help="Wait for new studies instead of exiting.")
@click.option("--on", type=click.Choice(["ray"]), help="Start them on a Ray cluster instead of this machine.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    envvar="RAY_ADDRESS",
    help="Of the Ray cluster (auto: one that runs here; ray://…: its client port). Default: starts Ray here.",
)
@click.option("--cpus-per-worker", type=click.FloatRange(min=0, min_open=True), default=None, help="On Ray; default 1.")
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    default=None,
    help="On Ray; 0.25 for four workers a GPU. Default: 1 if the cluster has GPUs.",
)
def launch(
    studies: Sequence[str],
    storage: str,
    workers: int | None,
    forever: bool,
    on: str | None,
    address: str | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
) -> None:
    """Start workers and keep them running.

    They run trials of the named studies, or of all studies in the database. Each worker gets its share of the cores,
    or a GPU; a worker that dies is restarted. Ends when all budgets are used up. On a Ray cluster, `--workers auto`
    uses all nodes, those that join later too.
    """
    from hpo.cli.launch_here import launch as launch_workers
    from hpo.workers.launcher import Cluster

    if on is None and (cpus_per_worker is not None or gpus_per_worker is not None):
        raise click.UsageError("--cpus-per-worker and --gpus-per-worker are for workers on Ray; add --on ray")
    cluster = None if on is None else Cluster(address, cpus_per_worker or 1.0, gpus_per_worker)
    launch_workers(studies, storage, workers, forever, cluster)


RUN_COMMANDS = (new, schema, run, init, submit, launch, worker)
