"""Writes a report's files: `hpo report` and `hpo.report`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.artifacts import open_artifacts, write_file
from hpo.conclude.report.facts import read_facts
from hpo.conclude.report.page import make_report
from hpo.errors import InputError
from hpo.search.sql.studies import Study


def write_report(engine: sa.Engine, study: Study, output: Path | None, figures: Path | None, anyway: bool) -> Path:
    """The HTML file that was written. Raises InputError, StudyError."""
    target = output or Path(f"{study.spec.folder_name}-report.html")
    facts = read_facts(engine, study, anyway)
    if target.is_dir():
        raise InputError(f"--output: {target} is a folder; name a file")
    if not target.parent.is_dir():
        raise InputError(f"--output: {target}: there is no folder {target.parent}; make it, or name another")
    if figures is not None:
        new_folder(figures, "--figures")
    made = make_report(engine, facts, open_artifacts())
    with _written("--output", target):
        write_file(target, made.html.encode())
    if figures is not None:
        with _written("--figures", figures):
            for drawn in made.figures:
                drawn.write(figures)
    if made.lacking:
        click.echo(f"the report has no images: {made.lacking}", err=True)
    if facts.confirmation is None:
        click.echo(f"nothing is confirmed yet; `hpo confirm {study.name}` does that", err=True)
    click.echo(f"the report is in {target} ({len(made.html) / 1e6:.1f} MB)", err=True)
    return target


@contextlib.contextmanager
def _written(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written: {error.strerror or error}") from None


def check_new(folder: Path, option: str) -> None:
    """Raises InputError if it exists and is not an empty folder."""
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{option}: {folder} is not empty; name a new folder")


def new_folder(folder: Path, option: str) -> None:
    """Makes an empty folder. Raises InputError if it exists and is not empty, or cannot be made."""
    check_new(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{option}: {folder} is a file; name a new folder") from None
    except OSError as error:
        raise InputError(f"{option}: {folder} cannot be made: {error.strerror or error}") from None
