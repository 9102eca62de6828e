"""Options and arguments that several commands share, each as a decorator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


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


def studies_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("studies", nargs=-1, metavar="[STUDY …]")(command)


def workers_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        help="Worker processes on this machine.",
    )(command)
