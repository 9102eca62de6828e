"""Replacements for requests that optuna-dashboard 0.21 handles badly.

It deletes and renames studies trial by trial, its renamed copy lacks what only hpo knows about, and its pages take
responses without a body for failures.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
import sqlalchemy as sa
from bottle import Bottle, request, response
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from hpo.artifacts import Artifacts
from hpo.errors import HpoError, StudyError
from hpo.search import housekeeping
from hpo.search.sql.outages import first_line

NOT_FOUND = "study_id={} is not found"

View = Callable[..., dict[str, Any]]


def add_routes(
    app: Bottle, storage: BaseStorage, engine: sa.Engine, artifacts: Artifacts, forget: Callable[[int], None]
) -> None:
    """Replaces optuna-dashboard's own routes. forget: called with the id of each study that was deleted or renamed."""

    def delete_study(study_id: int) -> dict[str, Any]:
        files_too = _sent().get("remove_associated_artifacts", True)
        deleted = housekeeping.delete_study(engine, study_id, artifacts, files_too, _say)
        forget(study_id)
        return {} if deleted else _refused(404, NOT_FOUND.format(study_id))

    def rename_study(study_id: int) -> dict[str, Any]:
        from optuna_dashboard._serializer import serialize_frozen_study
        from optuna_dashboard._storage import get_study

        name = _sent().get("study_name")
        if not isinstance(name, str) or not name:
            raise StudyError("study_name: must not be empty")
        renamed = housekeeping.rename_study(engine, study_id, name, artifacts, _say)
        forget(study_id)
        if not renamed:
            return _refused(404, NOT_FOUND.format(study_id))
        response.status = 201
        return dict(serialize_frozen_study(get_study(storage, study_id)))

    app.route("/api/studies/<study_id:int>", "DELETE", _explained(delete_study))
    app.route("/api/studies/<study_id:int>/rename", "POST", _explained(rename_study))
    app.add_hook("after_request", _answer_with_a_body)


def _sent() -> dict[str, Any]:
    """The request's JSON object, or an empty one. Bottle answers invalid JSON with 400."""
    return document if isinstance(document := request.json, dict) else {}


def _explained(view: View) -> View:
    """Reports errors in the response, and on stderr too, since the page only shows that a request failed."""

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
    """The page expects JSON in every response and takes a 204, which has no body, for a failure."""
    if response.status_code == 204:
        response.status = 200


def _say(text: str) -> None:
    click.echo(text, err=True)
