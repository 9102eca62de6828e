"""What the page asks for and optuna-dashboard 0.21 does not answer as it should: deleting and renaming a study, which
it does trial by trial, with a copy that lacks what it does not know; and answers without a body.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import click
import sqlalchemy as sa
from bottle import Bottle, request, response
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from hpo.artifacts import Artifacts
from hpo.errors import HpoError, StudyError
from hpo.search.sql.outages import first_line, outlast
from hpo.search.sql.whole_study import Kept, delete, folder_of, rename
from hpo.search.study_files import copy_folder, is_elsewhere, remove_folder, remove_left
from hpo.study_file.spec import Spec

PATIENCE_SECS = 20.0
"""How long somebody at the page waits while workers have the database locked."""

NOT_FOUND = "study_id={} is not found"

View = Callable[..., dict[str, Any]]


def add_routes(
    app: Bottle, storage: BaseStorage, engine: sa.Engine, artifacts: Artifacts, forget: Callable[[int], None]
) -> None:
    """In place of optuna-dashboard's own. forget: is told of which study nothing that is remembered holds any more."""

    def delete_study(study_id: int) -> dict[str, Any]:
        files_too = _sent().get("remove_associated_artifacts", True)
        kept = outlast(partial(delete, engine, study_id), _say, PATIENCE_SECS)
        forget(study_id)
        if kept is None:
            return _refused(404, NOT_FOUND.format(study_id))
        if files_too:
            _tidy(f"study {kept.study} is deleted", remove_left, artifacts, kept)
        return {}

    def rename_study(study_id: int) -> dict[str, Any]:
        from optuna_dashboard._serializer import serialize_frozen_study
        from optuna_dashboard._storage import get_study

        name = _sent().get("study_name")
        if not isinstance(name, str) or not name:
            raise StudyError("study_name: a study needs a name")
        kept = outlast(partial(rename, engine, study_id, name, partial(_copy, artifacts)), _say, PATIENCE_SECS)
        forget(study_id)
        if kept is None:
            return _refused(404, NOT_FOUND.format(study_id))
        if kept.folder is not None and kept.folder.casefold() != folder_of(name).casefold():  # some disks know no case
            _tidy(f"study {kept.study} is now {name}", remove_folder, artifacts, kept)
        response.status = 201
        return dict(serialize_frozen_study(get_study(storage, study_id)))

    app.route("/api/studies/<study_id:int>", "DELETE", _explained(delete_study))
    app.route("/api/studies/<study_id:int>/rename", "POST", _explained(rename_study))
    app.add_hook("after_request", _answer_with_a_body)


def _sent() -> dict[str, Any]:
    """The request's JSON; nothing if it has none. Bottle refuses what is none with 400."""
    return document if isinstance(document := request.json, dict) else {}


def _copy(artifacts: Artifacts, kept: Kept, renamed: Spec) -> None:
    """Copies what workers will look for under the new name. Raises StudyError if it is needed and not in reach."""
    if not is_elsewhere(kept.location, artifacts):
        copy_folder(artifacts, kept, renamed)
    elif kept.numbers or renamed.waits_for_baseline:
        raise StudyError(
            f"study '{kept.study}' has checkpoints in {kept.location}, which are kept by its name, and this dashboard "
            f"works on {artifacts.location}; start it with HPO_ARTIFACTS={kept.location}"
        )


def _tidy(done: str, remove: Callable[[Artifacts, Kept], None], artifacts: Artifacts, kept: Kept) -> None:
    """Files that are left over harm nobody, so that they fail no request."""
    if is_elsewhere(kept.location, artifacts):
        _say(f"{done}; its files in {kept.location} are left: HPO_ARTIFACTS is {artifacts.location} here")
        return
    try:
        remove(artifacts, kept)
    except OSError as error:
        _say(f"{done}; not all of its files in {artifacts.location} could be removed: {error.strerror or error}")


def _explained(view: View) -> View:
    """With the reason in the answer, and here too, since the page says only that it failed."""

    @wraps(view)
    def answer(**parts: Any) -> dict[str, Any]:
        try:
            return view(**parts)
        except StudyError as error:
            return _refused(400, str(error))
        except HpoError as error:
            return _refused(500, str(error))
        except SQLAlchemyError as error:
            return _refused(500, f"the database refused: {first_line(error)}")
        except OSError as error:
            return _refused(500, f"HPO_ARTIFACTS: {error.strerror or error}; nothing was changed")

    return answer


def _refused(status: int, reason: str) -> dict[str, Any]:
    _say(f"{request.method} {request.path}: {reason}")
    response.status = status
    return {"reason": reason}


def _answer_with_a_body() -> None:
    """The page reads JSON from every answer, and takes a 204, which has none, for a failure."""
    if response.status_code == 204:
        response.status = 200


def _say(text: str) -> None:
    click.echo(text, err=True)
