"""`hpo dashboard`: optuna-dashboard on this storage, behind a guard that decides who may see and change what.

optuna-dashboard reads the storage that it is given here: trials in bulk, constraints where it looks for them, and a
plot of clean against perturbed accuracy that is drawn when it is looked at, so that nothing of it is ever stale.
"""

import io
import json
import math
import re
import threading
import warnings
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import sqlalchemy as sa
from bottle import HTTPError, HTTPResponse, request
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpo.artifacts import Artifacts
from hpo.search.sql.attributes import ARTIFACTS_KEY
from hpo.search.sql.queries import front
from hpo.search.sql.studies import SPEC_KEY
from hpo.search.sql.tables import CONSTRAINT_KEY, studies, study_user_attributes, trials
from hpo.search.sql.trials_in_memory import read_trials
from hpo.search.study_files import is_elsewhere, location_in_full
from hpo.web.routes import add_routes

CHUNK = 2045  # characters in an attribute, as optuna-dashboard splits plots and notes
MOST_POINTS = 2000
"""The best ones: every browser that looks at the study loads them again and again."""
ONE_STUDY = re.compile(r"/api/studies/(\d+)/?")
STUDY_NOTE = "dashboard:note_str:"

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def build_app(storage: RDBStorage, artifacts: Artifacts) -> WsgiApp:
    """The WSGI application, without a guard. Its pages are optuna-dashboard's own."""
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard
        from optuna_dashboard._importance import param_importance_cache

        watched = _DashboardStorage(storage, artifacts)
        app = optuna_dashboard.wsgi(watched, artifact_store=_ArtifactStore(artifacts))

    def forget_what_was_computed() -> None:
        app._inmemory_cache.clear()
        param_importance_cache.clear()

    def read() -> None:
        """First the trials, since the plot and the notes are made of what was read last."""
        if request.method == "GET" and (found := ONE_STUDY.fullmatch(request.path)):
            seen = watched.get_all_trials(int(found[1]))
            after = request.query.get("after", "0")
            if after.isdecimal() and seen and not _may_be_known(seen, int(after)):
                reason = "this study was deleted and another has its number now: load the page again"
                raise HTTPResponse(json.dumps({"reason": reason}), 409, {"Content-Type": "application/json"})

    watched.when_replaced = forget_what_was_computed
    add_routes(app, watched, storage.engine, artifacts, watched.forget)
    app.add_hook("before_request", read)
    wsgi: WsgiApp = app
    return wsgi


def _may_be_known(seen: Sequence[FrozenTrial], first: int) -> bool:
    """Whether a browser may have read so many trials that do not change any more: it asks for those after them."""
    return first <= len(seen) and all(trial.state.is_finished() for trial in seen[:first])


@dataclass
class _Known:
    """A study as it was read last. identity: its name and spec, by which it differs from one that has its id later;
    ended: rows and trials that do not change any more, by id; seen: all trials, by number.
    """

    identity: Any
    ended: dict[int, tuple[Any, FrozenTrial]] = field(default_factory=dict)
    seen: list[FrozenTrial] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        return self.identity is not None and self.identity.spec is not None


class _DashboardStorage(_CachedStorage):
    """Reads trials in bulk, once: Optuna's own storage takes eight seconds for ten thousand, and reads every waiting
    one again each time. A trial that ended before the baseline may still get its constraint.

    Nothing is taken from memory by an id alone: SQLite gives those of deleted studies and trials out again. Studies
    that hpo did not make are shown as they are.
    """

    def __init__(self, backend: RDBStorage, artifacts: Artifacts | None = None) -> None:
        super().__init__(backend)
        self._engine = backend.engine
        self._artifacts = artifacts
        self._known: dict[int, _Known] = {}
        self._reading = threading.Lock()
        self.when_replaced: Callable[[], None] = lambda: None

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._backend.get_study_directions(study_id)

    def forget(self, study_id: int) -> None:
        """What was read of a study that was deleted or renamed."""
        self._known.pop(study_id, None)
        self.when_replaced()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._reading, self._engine.connect() as connection:
            seen = self._read(connection, study_id).seen
        return [trial for trial in seen if states is None or trial.state in states]

    def _read(self, connection: sa.Connection, study_id: int) -> _Known:
        identity = connection.execute(_identity(study_id)).one_or_none()
        rows = connection.execute(sa.select(trials).where(trials.c.study_id == study_id)).all()
        known = self._known.get(study_id)
        there = {row.trial_id: row for row in rows}
        if known is not None and (
            known.identity != identity or any(there.get(key) != row for key, (row, _) in known.ended.items())
        ):
            self.forget(study_id)
            known = None
        if known is None:
            known = self._known[study_id] = _Known(identity)
        new = [row for row in rows if row.trial_id not in known.ended]
        read = {trial._trial_id: trial for trial in read_trials(connection, new, whole=True)}
        if known.is_ours:
            for trial in read.values():
                _prepare(trial)
        kept = {key: trial for key, (_, trial) in known.ended.items()}
        found = kept | read
        baselines = [trial for trial in found.values() if known.is_ours and "baseline" in trial.user_attrs]
        if not baselines or any(trial.state == TrialState.COMPLETE for trial in baselines):
            known.ended |= {key: (there[key], trial) for key, trial in read.items() if trial.state.is_finished()}
        known.seen = sorted(found.values(), key=lambda trial: trial.number)
        return known

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Of our studies the best feasible one, if there is one."""
        with self._reading, self._engine.connect() as connection:
            known = self._read(connection, study_id)
        if not known.is_ours:
            return super().get_best_trial(study_id)
        complete = [trial for trial in known.seen if trial.state == TrialState.COMPLETE]
        feasible = [trial for trial in complete if _is_feasible(trial)]
        if not complete:
            raise ValueError("no trial is complete")
        return max(feasible or complete, key=lambda trial: (_score(trial), -trial.number))

    def get_all_studies(self) -> list[FrozenStudy]:
        """With what is drawn for those that are being looked at: the plot, and a note on each trial with pictures."""
        found = super().get_all_studies()
        for study in found:
            known = self._known.get(study._study_id)
            if known is not None and known.is_ours:
                study.system_attrs = self._drawn(study, known.seen)
        return found

    def _drawn(self, study: FrozenStudy, seen: Sequence[FrozenTrial]) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if figure := clean_against_perturbed(seen):
            drawn |= _in_chunks("dashboard:plot_data:clean-against-perturbed:", json.dumps(figure))
        missing = elsewhere_note(study.user_attrs.get(ARTIFACTS_KEY), self._artifacts)
        for trial in seen:
            version, text = f"dashboard:{trial._trial_id}:note_ver", f"dashboard:{trial._trial_id}:note_str:"
            if version in study.system_attrs:  # a note that somebody wrote wins
                continue
            if note := illustrated_note(study._study_id, trial):
                drawn |= {version: 0} | _in_chunks(text, missing + note)  # 0: as if none were there, for what is saved
        kept = drawn | study.system_attrs
        if missing:
            pieces = [kept.get(f"{STUDY_NOTE}{i}", "") for i in range(sum(key.startswith(STUDY_NOTE) for key in kept))]
            kept = {"dashboard:note_ver": 0} | kept | _in_chunks(STUDY_NOTE, missing + "".join(pieces))
        return kept

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keeps a note that was written in the page without what was shown above it."""
        if key.endswith("note_str:0"):
            location = self.get_study_user_attrs(study_id).get(ARTIFACTS_KEY)
            value = value.removeprefix(elsewhere_note(location, self._artifacts))
        super().set_study_system_attr(study_id, key, value)


def _identity(study_id: int) -> sa.Select[Any]:
    """(name, spec): the spec is None if hpo did not make the study."""
    spec = study_user_attributes.c
    return (
        sa.select(studies.c.study_name, spec.value_json.label("spec"))
        .outerjoin(study_user_attributes, (spec.study_id == studies.c.study_id) & (spec.key == SPEC_KEY))
        .where(studies.c.study_id == study_id)
    )


def _prepare(trial: FrozenTrial) -> None:
    """As the page understands it: constraints where optuna-dashboard 0.21 looks for them, and no end of what waits."""
    trial.user_attrs = _shown(trial.user_attrs)
    if (violation := trial._system_attrs.get(CONSTRAINT_KEY)) is not None:
        trial._system_attrs["constraints"] = [violation]
    if trial.state == TrialState.WAITING:
        trial.datetime_complete = None  # of a paused one: when it was paused


def elsewhere_note(kept: str | None, artifacts: Artifacts | None) -> str:
    """Markdown that says where pictures are, if that is not where this page looks; else nothing."""
    if artifacts is None or not is_elsewhere(kept, artifacts):
        return ""
    here = location_in_full(artifacts.location)
    return (
        f"**The workers of this study keep its pictures in `{kept}`; this page looks in `{here}`.** "
        f"If they are missing here, start `hpo dashboard` with `HPO_ARTIFACTS={kept}`.\n\n"
    )


def _in_chunks(prefix: str, text: str) -> dict[str, str]:
    return {f"{prefix}{i}": text[at : at + CHUNK] for i, at in enumerate(range(0, len(text), CHUNK))}


def illustrated_note(study_id: int, trial: FrozenTrial) -> str | None:
    """Markdown with a trial's correct counts and its pictures; None if it has no pictures."""
    kept = [json.loads(text) for key, text in trial._system_attrs.items() if key.startswith("artifacts:") and text]
    if not kept:
        return None
    correct, images = trial.user_attrs.get("correct", {}), trial.user_attrs.get("images")
    lines = ["| condition | correct | accuracy |", "|---|---|---|"]
    lines += [f"| {name} | {count} of {images} | {100 * count / images:.1f} % |" for name, count in correct.items()]
    for picture in sorted(kept, key=lambda picture: picture["filename"]):
        path = f"/artifacts/{study_id}/{trial._trial_id}/{picture['artifact_id']}"
        lines += ["", f"![{picture['filename']}]({path})"]
    return "\n".join(lines)


def clean_against_perturbed(seen: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """A Plotly figure of the complete trials: both accuracies in percent, the front, the baseline."""
    measured = [t for t in seen if t.state == TrialState.COMPLETE and "mean_perturbed_accuracy" in t.user_attrs]
    if not measured:
        return None
    best = sorted(measured, key=_score, reverse=True)[:MOST_POINTS]
    feasible = [trial for trial in best if _is_feasible(trial)]
    kinds: dict[str, tuple[list[FrozenTrial], dict[str, Any], str]] = {
        "feasible": (feasible, {"color": "#0969da"}, "markers"),
        "loses too much clean accuracy": ([t for t in best if not _is_feasible(t)], {"color": "#afb8c1"}, "markers"),
        "front": (front(map(_point, measured)), {"color": "#1a7f37"}, "lines"),
        "baseline": (
            [t for t in measured if "baseline" in t.user_attrs],
            {"color": "#cf222e", "symbol": "star", "size": 14},
            "markers",
        ),
    }
    axis = "mean perturbed accuracy, %"
    return {
        "data": [_trace(name, *kind) for name, kind in kinds.items() if kind[0]],
        "layout": {
            "title": {"text": "Clean against perturbed accuracy"},
            "xaxis": {"title": {"text": "clean accuracy, %"}},
            "yaxis": {"title": {"text": axis}},
            "hovermode": "closest",
        },
    }


def _trace(name: str, shown: Sequence[FrozenTrial], marker: dict[str, Any], mode: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "marker": marker,
        "line": {"color": marker["color"], "dash": "dot"},
        "x": [round(100 * _point(trial)[1], 2) for trial in shown],
        "y": [round(100 * _point(trial)[2], 2) for trial in shown],
        "text": [f"trial {t.number}, score {t.value:.4f}" for t in shown],
        "hovertemplate": "%{text}<br>clean %{x} %<br>perturbed %{y} %",
    }


def _point(trial: FrozenTrial) -> tuple[FrozenTrial, float, float]:
    return trial, trial.user_attrs["clean_accuracy"], trial.user_attrs["mean_perturbed_accuracy"]


def _shown(attributes: dict[str, Any]) -> dict[str, Any]:
    """As short lines, since the page does not break long ones: what made the trial, item by item, and no epochs, which
    are there as intermediate values.
    """
    made_by = attributes.get("made_by")
    items = made_by if isinstance(made_by, dict) else {}
    short = {key: value for key, value in attributes.items() if key not in ("epochs", "made_by")}
    return short | {f"made_by {key}": value for key, value in items.items()}


def _score(trial: FrozenTrial) -> float:
    return -math.inf if trial.value is None else trial.value


def _is_feasible(trial: FrozenTrial) -> bool:
    return not trial._system_attrs.get(CONSTRAINT_KEY, 0) > 0


class _ArtifactStore:
    """hpo's artifact store as optuna-dashboard reads it: bucket prefixes and all."""

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
