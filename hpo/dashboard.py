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
from typing import Any, BinaryIO

import sqlalchemy as sa
from bottle import HTTPError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpo.artifacts import Artifacts
from hpo.search.history import read_trials
from hpo.search.queries import front
from hpo.search.tables import CONSTRAINT_KEY, trials

CHUNK = 2045  # characters in an attribute, as optuna-dashboard splits plots and notes
MOST_POINTS = 2000
"""The best ones: every browser that looks at the study loads them again and again."""
ONE_STUDY = re.compile(r"/api/studies/(\d+)/?")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def build_app(storage: RDBStorage, artifacts: Artifacts) -> WsgiApp:
    """The WSGI application, without a guard. Its pages are optuna-dashboard's own."""
    with warnings.catch_warnings(action="ignore"):
        import optuna_dashboard

        watched = _DashboardStorage(storage)
        inner: WsgiApp = optuna_dashboard.wsgi(watched, artifact_store=_ArtifactStore(artifacts))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if found := ONE_STUDY.fullmatch(environ.get("PATH_INFO", "")):
            watched.get_all_trials(int(found[1]))  # the plot is made of what was read last
        return inner(environ, start_response)

    return app


class _DashboardStorage(_CachedStorage):
    """Reads trials in bulk, once: Optuna's own storage takes eight seconds for ten thousand, and reads every waiting
    one again each time. A trial that ended before the baseline may still get its constraint.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._engine = backend.engine
        self._ended: dict[int, dict[int, FrozenTrial]] = {}
        self._seen: dict[int, list[FrozenTrial]] = {}
        self._reading = threading.Lock()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._reading, self._engine.connect() as connection:
            ended = self._ended.setdefault(study_id, {})
            rows = connection.execute(sa.select(trials).where(trials.c.study_id == study_id)).all()
            new = [row for row in rows if row.trial_id not in ended]
            read = {trial._trial_id: trial for trial in read_trials(connection, new, whole=True)}
            for trial in read.values():
                trial.user_attrs = _shown(trial.user_attrs)
                if (violation := trial._system_attrs.get(CONSTRAINT_KEY)) is not None:
                    trial._system_attrs["constraints"] = [violation]  # where optuna-dashboard 0.21 looks for it
            baselines = [trial for trial in (*ended.values(), *read.values()) if "baseline" in trial.user_attrs]
            if not baselines or any(trial.state == TrialState.COMPLETE for trial in baselines):
                ended |= {key: trial for key, trial in read.items() if trial.state.is_finished()}
            found = [ended[row.trial_id] if row.trial_id in ended else read[row.trial_id] for row in rows]
            self._seen[study_id] = sorted(found, key=lambda trial: trial.number)
        return [trial for trial in self._seen[study_id] if states is None or trial.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible one, if there is one."""
        complete = self.get_all_trials(study_id, states=(TrialState.COMPLETE,))
        feasible = [trial for trial in complete if _is_feasible(trial)]
        if not complete:
            raise ValueError("no trial is complete")
        return max(feasible or complete, key=lambda trial: (_score(trial), -trial.number))

    def get_all_studies(self) -> list[FrozenStudy]:
        """With what is drawn for those that are being looked at: the plot, and a note on each trial with pictures."""
        studies = super().get_all_studies()
        for study in studies:
            seen = self._seen.get(study._study_id, ())
            drawn: dict[str, Any] = {}
            if figure := clean_against_perturbed(seen):
                drawn |= _in_chunks("dashboard:plot_data:clean-against-perturbed:", json.dumps(figure))
            for trial in seen:
                if note := illustrated_note(study._study_id, trial):
                    prefix = f"dashboard:{trial._trial_id}:"
                    drawn |= {f"{prefix}note_ver": 1} | _in_chunks(f"{prefix}note_str:", note)
            study.system_attrs = drawn | study.system_attrs  # a note that somebody wrote wins
        return studies


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
