"""The command `hpo`: parses, calls, prints. Imports lazily, so that only commands that train load torch.

stdout is data, stderr is talk. Exit codes: hpo.errors.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hpo import __version__
from hpo.errors import HpoError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from hpo.search.study import Study
    from hpo.spec import Spec

INTERRUPTED_EXIT_CODE = 130


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
    except Exception as error:
        _fail_if_database_lost(error)
        raise
    sys.exit(0)


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"hpo: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)


def _fail_if_database_lost(error: Exception) -> None:
    import sqlalchemy.exc

    cause = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__
    if isinstance(cause, sqlalchemy.exc.OperationalError):
        _fail(f"the database was lost: {str(cause.orig).strip().splitlines()[0]}", 3)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hpo")
def cli() -> None:
    """Find image classifiers that stay right when their input is perturbed.

    A study file says what to search; `hpo run` searches it on this machine. Any number of `hpo worker` on any number
    of machines can share the work through one database.
    """


def storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--storage",
        envvar="HPO_STORAGE",
        default="sqlite:///hpo.db",
        show_default=True,
        metavar="URL",
        help="The database: sqlite:///file.db or postgresql://user:password@host/database. Also HPO_STORAGE.",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def spec_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key, such as training.epochs=3.",
    )
    return click.argument("study_file", type=click.Path(path_type=Path))(overrides(command))


@cli.command()
@spec_arguments
@storage_option
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Worker processes on this machine.",
)
def run(study_file: Path, overrides: Sequence[str], storage: str, workers: int) -> None:
    """Submit a study, work on it here, print the best.

    Works until the budget is used. Shows progress, then prints the best configurations. Run again to go on where it
    stopped. Relative paths in the study file are relative to the current folder.
    """
    from hpo.run import run_study
    from hpo.spec import load_spec

    run_study(load_spec(study_file, overrides), storage, workers)


@cli.command()
@spec_arguments
@storage_option
def submit(study_file: Path, overrides: Sequence[str], storage: str) -> None:
    """Put a study into the database, for workers to take.

    Saying it twice changes nothing; a change to what is already searched is refused.
    """
    from hpo.search.storage import open_database, parse_url
    from hpo.search.study import submit as submit_study
    from hpo.spec import load_spec

    spec = load_spec(study_file, overrides)
    study, new = submit_study(open_database(parse_url(storage), create=True), spec)
    said = "submitted" if new else "was submitted before; nothing changed"
    click.echo(
        f"study {study.name} {said}: budget {spec.budget}. Start workers with: hpo worker {study.name}",
        err=True,
    )


@cli.command()
@click.argument("studies", nargs=-1, metavar="[STUDY …]")
@storage_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="CPU threads of this worker. Default: all cores.",
)
@click.option("--forever", is_flag=True, help="Wait for new studies instead of ending.")
def worker(studies: Sequence[str], storage: str, threads: int | None, forever: bool) -> None:
    """Take trials of studies until their budgets are used.

    Of all studies in the database, if none is named.
    """
    from hpo.search.storage import open_database, parse_url
    from hpo.search.worker import work
    from hpo.stopping import Stopped, stop_on_signals

    stop_on_signals()
    name = f"{socket.gethostname()}:{os.getpid()}"
    try:
        database = open_database(parse_url(storage))
        work(database, studies, _objective_loader(threads), name, click.echo, forever)
    except Stopped:
        click.echo(f"worker {name} stopped; a trial that it ran was given back")


def _objective_loader(threads: int | None) -> Callable[["Spec"], Any]:
    artifacts = Path(os.environ.get("HPO_ARTIFACTS", "hpo-artifacts"))

    def load(spec: "Spec") -> Any:
        from hpo.objective import RobustAccuracy

        return RobustAccuracy(spec, threads, artifacts)

    return load


@cli.command()
@click.argument("studies", nargs=-1, metavar="[STUDY …]")
@storage_option
@json_option
def status(studies: Sequence[str], storage: str, as_json: bool) -> None:
    """How far studies are: their budgets, and their trials by state.

    All studies of the database, if none is named.
    """
    from hpo import display
    from hpo.search.queries import status as status_of
    from hpo.search.storage import open_engine, parse_url
    from hpo.search.study import find_studies

    engine = open_engine(parse_url(storage))
    records = [status_of(engine, study) for study in find_studies(engine, studies)]
    if as_json:
        click.echo(json.dumps(records[0] if len(studies) == 1 else records, indent=2))
    else:
        display.console().print(display.status_table(records))


@cli.command()
@click.argument("study")
@storage_option
@json_option
@click.option("--toml", "as_toml", is_flag=True, help="Print a study file with this configuration, for `hpo run`.")
def best(study: str, storage: str, as_json: bool, as_toml: bool) -> None:
    """The best configuration of a study, beside its baseline."""
    from hpo import display
    from hpo.search.queries import best_trials

    engine, found = _open_study(study, storage)
    results = best_trials(engine, study, 1)
    if not results:
        raise HpoError(f"study '{study}' has no complete trial yet; `hpo status {study}` shows how far it is")
    if as_toml:
        click.echo(_toml(found, results[0].number, results[0].params), nl=False)
    elif as_json:
        click.echo(json.dumps(results[0].as_json(), indent=2))
    else:
        display.print_best(display.console(), engine, found, most=1)


@cli.command()
@click.argument("study")
@click.option("-n", "most", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@storage_option
@json_option
def top(study: str, most: int, storage: str, as_json: bool) -> None:
    """The best configurations of a study, best first."""
    from hpo import display
    from hpo.search.queries import best_trials

    engine, found = _open_study(study, storage)
    if as_json:
        click.echo(json.dumps([result.as_json() for result in best_trials(engine, study, most)], indent=2))
    else:
        display.print_best(display.console(), engine, found, most)


def _open_study(name: str, storage: str) -> "tuple[sa.Engine, Study]":
    from hpo.search.storage import open_engine, parse_url
    from hpo.search.study import find_studies

    engine = open_engine(parse_url(storage))
    return engine, find_studies(engine, [name])[0]


def _toml(study: "Study", number: int, params: dict[str, Any]) -> str:
    """The study's file with the parameters of one trial fixed."""
    import tomli_w

    document = study.spec.model_dump(exclude_none=True)
    changes = {
        "name": f"{study.name}-trial-{number}",
        "budget": 2,
        "search": params,
        "sampler": {"name": "random"},
    }
    return f"# Trial {number} of study {study.name}, and the baseline to compare it with.\n" + tomli_w.dumps(
        document | changes
    )
