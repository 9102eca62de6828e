"""What several commands share: options and arguments, each as a decorator, and how a study is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import sqlalchemy as sa

    from hpo.search.study import Study


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
    return click.option("-n", "most", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")(
        command
    )


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


def workers_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Worker processes on this machine.",
    )(command)


def open_study(name: str, storage: str) -> "tuple[sa.Engine, Study]":
    """The database, and a study in it."""
    from hpo.search.storage import open_engine, parse_url
    from hpo.search.study import find_studies

    engine = open_engine(parse_url(storage))
    return engine, find_studies(engine, [name])[0]
