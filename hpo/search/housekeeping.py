"""Deletes, renames and copies studies with all that belongs to them, for the command line and the dashboard alike."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import sqlalchemy as sa

from hpo.artifacts import Artifacts
from hpo.errors import StudyError
from hpo.search.confirmation import SUFFIX
from hpo.search.sql.copying import Place, check_free, insert_rows, read_rows, reading
from hpo.search.sql.fence import new_token
from hpo.search.sql.outages import outlast
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import studies
from hpo.search.sql.whole_study import Kept, confirmation_of, delete, folder_of, kept_files, rename
from hpo.search.study_files import (
    copy_file,
    copy_folder,
    is_elsewhere,
    location_in_full,
    remove_folder,
    remove_left,
)
from hpo.study_file.spec import Spec

PATIENCE_SECS = 20.0
"""How long to wait while workers have the database locked."""
RECENT_SECS = 24 * 3600
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


def copy_study(engine: sa.Engine, study: Study, to: sa.Engine, name: str, here: Artifacts, there: Artifacts) -> str:
    """Copies a search into a database, perhaps the same, under a name that is free there, with its confirmation and
    files; here, there: the artifact stores of both. What was added is complete or is not there at all. Returns its
    folder in the store. Raises StudyError, and OSError if files cannot be copied.
    """
    study.refuse_confirmation()
    check_free(to, name)
    with reading(engine) as connection:
        ids = [study.study_id, confirmation_of(connection, study.study_id)]
        found = [(kept_files(connection, each), read_rows(connection, each)) for each in ids if each is not None]
    folder, location = f"{folder_of(name)}-{new_token()[:8]}", location_in_full(there.location)
    suffixes = ("", SUFFIX)
    copies = []
    for (kept, rows), suffix in zip(found, suffixes, strict=False):
        if kept is None:
            raise StudyError(f"study '{study.name}' was deleted")
        if is_elsewhere(kept.location, here):
            raise StudyError(_unreachable(kept, here))
        pictures = {each: str(uuid.uuid4()) for each in kept.pictures}
        copies.append((kept, rows, Place(name + suffix, location, folder + suffix, pictures)))
    try:
        for kept, _, place in copies:
            copy_folder(here, kept, place.folder, there)
            for old, new in place.pictures.items():
                copy_file(here, old, there, new)
        with writing(to) as connection:
            confirms = None
            for _, rows, place in copies:
                confirms = name, insert_rows(connection, rows, place, confirms)
    except BaseException:
        for kept, _, place in copies:
            remove_left(there, replace(kept, folder=place.folder, pictures=list(place.pictures.values())))
        raise
    return folder


def ownerless(databases: Sequence[sa.Engine], artifacts: Artifacts) -> dict[str, int]:
    """Names and sizes of the files in a store that no study of these databases owns, but for recent ones, whose study a
    worker may be about to name. Raises InputError for a bucket.
    """
    folders: set[str] = set()
    pictures: set[str] = set()
    for engine in databases:
        with engine.connect() as connection:
            for study_id in connection.execute(sa.select(studies.c.study_id)).scalars():
                if (kept := kept_files(connection, study_id)) is not None:
                    folders |= {kept.folder} if kept.folder else set()
                    pictures |= set(kept.pictures)
    before = time.time() - RECENT_SECS
    return {
        name: file.st_size
        for name, file in sorted(artifacts.files().items())
        if file.st_mtime < before and name not in pictures and name.partition("/")[0] not in folders
    }


def _unreachable(kept: Kept, artifacts: Artifacts) -> str:
    return (
        f"study '{kept.study}' has its files in {kept.location}, but HPO_ARTIFACTS is {artifacts.location} here; set "
        f"HPO_ARTIFACTS={kept.location}"
    )


def _copy(artifacts: Artifacts, kept: Kept, renamed: Spec) -> None:
    """Copies the files that workers need under the new name. Raises StudyError if they cannot be reached from here."""
    if not is_elsewhere(kept.location, artifacts):
        copy_folder(artifacts, kept, renamed.folder_name)
    elif kept.numbers or renamed.waits_for_baseline:
        raise StudyError(_unreachable(kept, artifacts))


def _tidy(done: str, remove: Callable[[Artifacts, Kept], None], artifacts: Artifacts, kept: Kept, say: Say) -> None:
    """Removes files. Leftover files do no harm, so a failure is only reported."""
    if is_elsewhere(kept.location, artifacts):
        say(f"{done}; its files in {kept.location} were kept: HPO_ARTIFACTS is {artifacts.location} here")
        return
    try:
        remove(artifacts, kept)
    except OSError as error:
        say(f"{done}; some of its files in {artifacts.location} could not be removed: {error.strerror or error}")
