"""Writes a network's folder, and trials for other trackers: `hpo export`."""

import shlex
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.artifacts import open_artifacts
from hpo.cli.report_here import check_new, new_folder
from hpo.conclude.exported.folder import check_onnx, write_network
from hpo.conclude.exported.trackers import to_mlflow, to_tensorboard
from hpo.conclude.report.facts import read_facts
from hpo.counted import counted
from hpo.errors import InputError
from hpo.search.sql.studies import Study


@dataclass(frozen=True)
class Wanted:
    """What a user asks to have exported. mlflow: a tracking URI; anyway: also of a search that is not finished."""

    folder: Path
    onnx: bool
    mlflow: str | None
    tensorboard: Path | None
    anyway: bool


def export_study(engine: sa.Engine, study: Study, wanted: Wanted) -> None:
    """Raises InputError, StudyError; nothing is left in the folder then."""
    facts = read_facts(engine, study, wanted.anyway)
    folder, say = wanted.folder, partial(click.echo, err=True)
    if wanted.onnx:
        check_onnx()
    if wanted.tensorboard is not None:
        check_new(wanted.tensorboard, "--tensorboard")
    new_folder(folder, "DIR")
    if wanted.tensorboard is not None:
        new_folder(wanted.tensorboard, "--tensorboard")
    building = None
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        made = building / folder.name  # renamed when it is whole: a killed export is not mistaken for a finished one
        made.mkdir()
        write_network(engine, facts, open_artifacts(), made, wanted.onnx, say)
        made.rename(folder)  # over the empty one
        if wanted.tensorboard is not None:
            count = to_tensorboard(wanted.tensorboard, facts.trials)
            say(f"{counted(count, 'trial')} for TensorBoard in {wanted.tensorboard}/")
        if wanted.mlflow is not None:
            count = to_mlflow(wanted.mlflow, study.name, facts.trials, facts.best.number, folder)
            say(f"{counted(count, 'trial')} added to MLflow")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"DIR: {folder} cannot be written: {error.strerror or error}") from None
        raise
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    if facts.confirmation is None:
        say(f"nothing is confirmed yet; `hpo confirm {shlex.quote(study.name)}` does that")
    say(f"trial {facts.best.number} of study {study.name} is in {folder}/")
