"""What several commands share: options and arguments, each as a decorator, and small helpers."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import sqlalchemy as sa

    from hpo.search.sql.studies import Study


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


def csv_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")(command)


def limit_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-n", "limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="How many trials."
    )(command)


def spec_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the study file, such as training.epochs=3. May be repeated.",
    )
    return click.argument("study_file", type=click.Path(path_type=Path))(overrides(command))


def studies_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("studies", nargs=-1, metavar="[STUDY …]")(command)


class _Workers(click.IntRange):
    """A number, or None for `auto`."""

    name = "whole number, nor auto"  # click says: 'x' is not a valid whole number, nor auto

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if str(value).lower() == "auto" else super().convert(value, param, ctx)


def workers_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workers",
        type=_Workers(),
        metavar="N|auto",
        default="1",
        show_default=True,
        help="Worker processes on this machine, at most four per core. auto: one per core, or four per GPU, as far as "
        "cores and memory allow.",
    )(command)


def open_study(name: str, storage: str) -> "tuple[sa.Engine, Study]":
    """The database and the study of this name in it. Raises StudyError if there is none."""
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.studies import find_studies
    from hpo.search.sql.url import parse_url

    engine = open_engine(parse_url(storage))
    return engine, find_studies(engine, [name])[0]


def open_search(name: str, storage: str) -> "tuple[sa.Engine, Study]":
    """The same, of a search. Raises StudyError for a confirmation."""
    engine, study = open_study(name, storage)
    study.refuse_confirmation()
    return engine, study


def launch_command(study: str) -> str:
    """The command to suggest for a study that has trials left to run."""
    return f"hpo launch {shlex.quote(study)} --workers 2"


def print_json(found: Any) -> None:
    """Prints JSON, which has no numbers that are not finite: null stands for them."""
    click.echo(json.dumps(_finite(found), indent=2, allow_nan=False))


def _finite(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
