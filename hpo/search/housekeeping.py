"""Deletes and renames studies with all that belongs to them: for the command line and for the dashboard alike."""

from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from hpo.artifacts import Artifacts
from hpo.errors import StudyError
from hpo.search.sql.outages import outlast
from hpo.search.sql.whole_study import Kept, delete, rename
from hpo.search.study_files import copy_folder, is_elsewhere, remove_folder, remove_left
from hpo.study_file.spec import Spec

PATIENCE_SECS = 20.0
"""How long to wait while workers have the database locked."""
Say = Callable[[str], None]


def delete_study(engine: sa.Engine, study_id: int, artifacts: Artifacts, files_too: bool, say: Say) -> list[str]:
    """Deletes a study, its confirmation and, with files_too, their files in the artifact store. The names of what was
    deleted; empty if there is no such study. What cannot be removed of the files is said.
    """
    deleted = outlast(partial(delete, engine, study_id), say, PATIENCE_SECS)
    for each in deleted if files_too else ():
        _tidy(f"study {each.study} was deleted", remove_left, artifacts, each, say)
    return [each.study for each in deleted]


def rename_study(engine: sa.Engine, study_id: int, name: str, artifacts: Artifacts, say: Say) -> list[str]:
    """Renames a study and its confirmation, and copies what workers keep under the new name. The old names; empty if
    there is no such study. Raises StudyError, and OSError if the files cannot be copied; then nothing is renamed.
    """
    renamed = outlast(partial(rename, engine, study_id, name, partial(_copy, artifacts)), say, PATIENCE_SECS)
    for each in renamed:
        if each.folder is not None and renamed[0].study.casefold() != name.casefold():  # as some file systems have it
            _tidy(f"study {each.study} was renamed", remove_folder, artifacts, each, say)
    return [each.study for each in renamed]


def _copy(artifacts: Artifacts, kept: Kept, renamed: Spec) -> None:
    """Copies the files that workers need under the new name. Raises StudyError if they cannot be reached from here."""
    if not is_elsewhere(kept.location, artifacts):
        copy_folder(artifacts, kept, renamed)
    elif kept.numbers or renamed.waits_for_baseline:
        raise StudyError(
            f"study '{kept.study}' has checkpoints under its name in {kept.location}, but HPO_ARTIFACTS is "
            f"{artifacts.location} here; set HPO_ARTIFACTS={kept.location}"
        )


def _tidy(done: str, remove: Callable[[Artifacts, Kept], None], artifacts: Artifacts, kept: Kept, say: Say) -> None:
    """Removes files. Leftover files do no harm, so a failure is only reported."""
    if is_elsewhere(kept.location, artifacts):
        say(f"{done}; its files in {kept.location} were kept: HPO_ARTIFACTS is {artifacts.location} here")
        return
    try:
        remove(artifacts, kept)
    except OSError as error:
        say(f"{done}; some of its files in {artifacts.location} could not be removed: {error.strerror or error}")
