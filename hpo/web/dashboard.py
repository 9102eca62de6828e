"""The application behind `hpo dashboard`: optuna-dashboard on a storage and artifact store of our own."""

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

from bottle import HTTPError, HTTPResponse, request
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from hpo.artifacts import Artifacts
from hpo.web.compressed import compressed
from hpo.web.guard import WsgiApp
from hpo.web.metrics import add_watching_routes
from hpo.web.routes import add_routes
from hpo.web.storage import DashboardStorage
from hpo.web.study_detail import StudyDetails


def build_app(storage: RDBStorage, artifacts: Artifacts, base_path: str = "") -> WsgiApp:
    """The WSGI application, without access control (hpo.web.guard). The pages are optuna-dashboard's own.

    base_path: what browsers have before its paths.
    """
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard
        from optuna_dashboard._importance import param_importance_cache

        watched = DashboardStorage(storage, artifacts, base_path)
        app = optuna_dashboard.wsgi(watched, artifact_store=_ArtifactStore(artifacts))

    def clear_caches() -> None:
        details.clear()
        app._inmemory_cache.clear()
        param_importance_cache.clear()

    details = StudyDetails(watched)
    of_optuna, _ = app.router.match({"PATH_INFO": "/api/studies/1", "REQUEST_METHOD": "GET"})

    def study_detail(study_id: int) -> Any:
        """The plot and the notes are drawn from the trials that were read last: here, before all else."""
        known = watched.read(study_id)
        after = request.query.get("after", "0")
        if after.isdecimal() and known.is_there and not _may_be_known(known.seen, int(after)):
            reason = "this study was deleted and another study now has its number; reload the page"
            return HTTPResponse(json.dumps({"reason": reason}), 409, {"Content-Type": "application/json"})
        text = details.answer(study_id, known, int(after)) if known.is_ours and after.isdecimal() else None
        return (
            of_optuna.call(study_id) if text is None else HTTPResponse(text, 200, {"Content-Type": "application/json"})
        )

    watched.when_replaced = clear_caches
    add_routes(app, watched, storage.engine, artifacts, watched.forget)
    add_watching_routes(app, storage.engine)
    app.route("/api/studies/<study_id:int>", "GET", study_detail)
    return compressed(app)


def _may_be_known(seen: Sequence[FrozenTrial], first: int) -> bool:
    """Whether a browser may already have read this many finished trials: it requests only those after them."""
    return first <= len(seen) and all(trial.state.is_finished() for trial in seen[:first])


class _ArtifactStore:
    """hpo's artifact store, including bucket prefixes, with the interface that optuna-dashboard expects."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def open_reader(self, artifact_id: str) -> BinaryIO:
        content = self._artifacts.read(artifact_id)
        if content is None:
            raise HTTPError(404, f"no artifact {artifact_id} in HPO_ARTIFACTS ({self._artifacts.location})")
        return io.BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._artifacts.write(artifact_id, content_body.read())

    def remove(self, artifact_id: str) -> None:
        self._artifacts.remove(artifact_id)
