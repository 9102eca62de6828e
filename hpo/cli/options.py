"""What several commands share: options and arguments, each as a decorator, and how a study is opened."""

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


def most_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-n", "most", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="How many."
    )(command)


def spec_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key, such as training.epochs=3.",
    )
    return click.argument("study_file", type=click.Path(path_type=Path))(overrides(command))


def studies_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("studies", nargs=-1, metavar="[STUDY …]")(command)


class _Workers(click.IntRange):
    """A number, or None for `auto`."""

    name = "whole number, nor auto"

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
        help="Worker processes on this machine, at most four a core; auto: one a core, or four a GPU, as far as "
        "cores and memory go.",
    )(command)


def open_study(name: str, storage: str) -> "tuple[sa.Engine, Study]":
    """The database, and a study in it."""
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.studies import find_studies
    from hpo.search.sql.url import parse_url

    engine = open_engine(parse_url(storage))
    return engine, find_studies(engine, [name])[0]


def launch_command(study: str) -> str:
    """What to type next, for a study that has work left."""
    return f"hpo launch {shlex.quote(study)} --workers 2"
