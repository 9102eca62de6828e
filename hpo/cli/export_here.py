"""Writes a network's folder: `hpo export`."""

import shlex
import shutil
from functools import partial
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.artifacts import open_artifacts
from hpo.cli.report_here import new_folder
from hpo.conclude.exported.folder import write_network
from hpo.conclude.report.facts import read_facts
from hpo.errors import InputError
from hpo.search.sql.studies import Study


def export_study(engine: sa.Engine, study: Study, folder: Path, onnx: bool, anyway: bool) -> None:
    """Raises InputError, StudyError; nothing is left in the folder then."""
    facts = read_facts(engine, study, anyway)
    new_folder(folder, "DIR")
    say = partial(click.echo, err=True)
    try:
        write_network(engine, facts, open_artifacts(), folder, onnx, say)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"DIR: {folder} cannot be written: {error.strerror or error}") from None
        raise
    if facts.confirmed is None:
        say(f"nothing is confirmed yet; `hpo confirm {shlex.quote(study.name)}` does that")
    say(f"trial {facts.best.number} of study {study.name} is in {folder}/")
