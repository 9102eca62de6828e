"""What we add to optuna-dashboard's pages: a plot of clean against perturbed accuracy, and notes on trials."""

import json
import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.artifacts import Artifacts
from hpo.search.sql.queries import front
from hpo.search.sql.tables import CONSTRAINT_KEY
from hpo.search.study_files import is_elsewhere, location_in_full

MOST_POINTS = 2000
"""Only the best trials are plotted, since every open browser reloads the plot again and again."""


def clean_against_perturbed(seen: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """A Plotly figure of the complete trials with the Pareto front and the baseline; None if no trial is complete."""
    measured = [t for t in seen if t.state == TrialState.COMPLETE and "mean_perturbed_accuracy" in t.user_attrs]
    if not measured:
        return None
    best = sorted(measured, key=score_of, reverse=True)[:MOST_POINTS]
    feasible = [trial for trial in best if is_feasible(trial)]
    kinds: dict[str, tuple[list[FrozenTrial], dict[str, Any], str]] = {
        "feasible": (feasible, {"color": "#0969da"}, "markers"),
        "loses too much clean accuracy": ([t for t in best if not is_feasible(t)], {"color": "#afb8c1"}, "markers"),
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


def illustrated_note(study_id: int, trial: FrozenTrial) -> str | None:
    """Markdown with the numbers of correct predictions of a trial and its figures; None if it has no figures."""
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


def elsewhere_note(kept: str | None, artifacts: Artifacts | None) -> str:
    """Markdown that says where the figures are, if this dashboard reads another artifact store; else empty."""
    if artifacts is None or not is_elsewhere(kept, artifacts):
        return ""
    here = location_in_full(artifacts.location)
    return (
        f"**The workers of this study store its figures in `{kept}`; this dashboard reads `{here}`.** "
        f"If figures are missing, start `hpo dashboard` with `HPO_ARTIFACTS={kept}`.\n\n"
    )


def score_of(trial: FrozenTrial) -> float:
    return -math.inf if trial.value is None else trial.value


def is_feasible(trial: FrozenTrial) -> bool:
    return not trial._system_attrs.get(CONSTRAINT_KEY, 0) > 0
