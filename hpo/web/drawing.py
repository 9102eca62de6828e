"""What `hpo dashboard` adds to optuna-dashboard's pages: a plot of two parts of the score, and notes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.artifacts import Artifacts
from hpo.search.sql.old_attributes import parts_of
from hpo.search.sql.queries import front
from hpo.search.sql.tables import CONSTRAINT_PREFIX
from hpo.search.study_files import is_elsewhere, location_in_full
from hpo.trial_result import CLEAN, images_of

MAX_POINTS = 2000
"""Only the best trials are plotted, since every open browser reloads the plot again and again."""


PARTS = "hpo:parts"
"""The system attribute with the parts of a trial's score, by name, as the page's storage reads it."""
MEAN = "mean_perturbed_accuracy"


@dataclass(frozen=True)
class Axes:
    """Two parts of the score that are weighed against each other, and what they are multiplied with."""

    x: str
    y: str
    scale: float = 1.0

    def point(self, trial: FrozenTrial) -> tuple[float, float] | None:
        """None if the trial has not measured both."""
        known = _parts(trial) | trial.user_attrs
        x, y = known.get(self.x), known.get(self.y)
        return None if x is None or y is None else (round(self.scale * x, 4), round(self.scale * y, 4))


def _parts(trial: FrozenTrial) -> dict[str, float]:
    return trial._system_attrs.get(PARTS) or parts_of(trial.user_attrs)


def axes_of(seen: Sequence[FrozenTrial]) -> Axes | None:
    """Clean accuracy and the mean of the perturbed ones, in percent; of other objectives the first two parts."""
    for trial in seen:
        parts = _parts(trial)
        if CLEAN in parts and MEAN in trial.user_attrs:
            return Axes(CLEAN, MEAN, 100)
        if len(parts) >= 2:
            x, y = list(parts)[:2]
            return Axes(x, y)
    return None


def part_against_part(seen: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """A Plotly figure of the complete trials: two parts of the score, the front, the baseline."""
    complete = [trial for trial in seen if trial.state == TrialState.COMPLETE]
    axes = axes_of(complete)
    points = {trial.number: point for trial in complete if axes and (point := axes.point(trial))}
    measured = [trial for trial in complete if trial.number in points]
    if axes is None or not measured:
        return None
    best = sorted(measured, key=score_of, reverse=True)[:MAX_POINTS]
    kinds: dict[str, tuple[list[FrozenTrial], dict[str, Any], str]] = {
        "feasible": ([t for t in best if is_feasible(t)], {"color": "#0969da"}, "markers"),
        "infeasible": ([t for t in best if not is_feasible(t)], {"color": "#afb8c1"}, "markers"),
        "front": (front([(trial, points[trial.number]) for trial in measured]), {"color": "#1a7f37"}, "lines"),
        "baseline": (
            [t for t in measured if "baseline" in t.user_attrs],
            {"color": "#cf222e", "symbol": "star", "size": 14},
            "markers",
        ),
    }
    x, y = ("clean accuracy, %", "mean perturbed accuracy, %") if axes.y == MEAN else (axes.x, axes.y)
    title = "Clean against perturbed accuracy" if axes.y == MEAN else f"{axes.x} against {axes.y}"
    return {
        "data": [_trace(name, *kind, points) for name, kind in kinds.items() if kind[0]],
        "layout": {
            "title": {"text": title},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "hovermode": "closest",
        },
    }


def _trace(
    name: str,
    shown: Sequence[FrozenTrial],
    marker: dict[str, Any],
    mode: str,
    points: Mapping[int, tuple[float, float]],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "marker": marker,
        "line": {"color": marker["color"], "dash": "dot"},
        "x": [points[trial.number][0] for trial in shown],
        "y": [points[trial.number][1] for trial in shown],
        "text": [f"trial {t.number}, score {t.value:.4f}" for t in shown],
        "hovertemplate": "%{text}<br>%{x}<br>%{y}",
    }


def illustrated_note(study_id: int, trial: FrozenTrial, base_path: str = "") -> str | None:
    """Markdown with the parts of a trial's score and its pictures, whose paths begin with `base_path`; None if it has
    no files.
    """
    kept = [json.loads(text) for key, text in trial._system_attrs.items() if key.startswith("artifacts:") and text]
    if not kept:
        return None
    parts = _parts(trial)
    if images := images_of(parts, trial.user_attrs):
        lines = ["| condition | correct | accuracy |", "|---|---|---|"]
        lines += [
            f"| {name} | {round(a * images[name])} of {images[name]} | {100 * a:.1f} % |" for name, a in parts.items()
        ]
    else:
        lines = ["| part | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in parts.items())]
    pictures = [each for each in kept if each["mimetype"].startswith("image/")]
    for picture in sorted(pictures, key=lambda picture: picture["filename"]):
        path = f"{base_path}/artifacts/{study_id}/{trial._trial_id}/{picture['artifact_id']}"
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
    return all(value <= 0 for key, value in trial._system_attrs.items() if key.startswith(CONSTRAINT_PREFIX))
