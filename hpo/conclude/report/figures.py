"""The figures of a report: vector graphics whose text can be selected, with the values behind each point.

Drawn once with Matplotlib. In the page their colours are the page's own, so that they turn dark with it, and points
tell their values under the mouse; as files they are SVG, PNG and CSV.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from hpo.conclude.report.facts import Facts
from hpo.search.sql.queries import front
from hpo.trial_result import CLEAN, TrialResult

INK, FAINT = "#1b1c1e", "#8a8f98"
COLOURS = {"baseline": "#d55e00", "control": "#8a6d00", "candidate": "#0072b2"}
"""Of Okabe and Ito's palette, which colour-blind people tell apart; so do the lines' marks."""
MARKS = {"baseline": "o", "control": "s", "candidate": "D"}
THEME = {INK: "currentColor", FAINT: "var(--faint)"} | {colour: f"var(--{name})" for name, colour in COLOURS.items()}
WIDTH, HEIGHT = 4.2, 2.9
"""Inches of 72 px: as wide as a phone, so that the text there is as large as it was drawn."""
POINTS_WITH_VALUES = 300
FEW = 5
"""With fewer complete trials nothing can be seen of what the score depends on."""


@dataclass
class Drawn:
    """A figure. name: of its files; caption: what it shows; rows: its data; values: what a point says, by its gid."""

    name: str
    caption: str
    figure: Figure
    rows: list[dict[str, Any]]
    values: dict[str, str] = field(default_factory=dict)

    def svg(self) -> str:
        """For the page."""
        text = self._svg
        text = text[text.index("<svg") :]
        for gid, value in self.values.items():
            text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{_escaped(value)}</title>', 1)
        text = re.sub(r'<g id="[^"]*"', "<g", text)  # of one figure they would be those of another too
        for colour, themed in THEME.items():
            text = text.replace(colour, themed)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", text, count=1)

    def write(self, folder: Path) -> None:
        """SVG, PNG and CSV. Raises OSError."""
        (folder / f"{self.name}.svg").write_text(self._svg, encoding="utf-8")
        self.figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in self.rows for key in row)))
            writer.writeheader()
            writer.writerows(self.rows)

    @cached_property
    def _svg(self) -> str:
        content = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):  # text; ids of each figure's own
            self.figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        return content.getvalue()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def new_axes(x: str, y: str, columns: int = 1, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """Axes side by side, in the page's ink."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    made = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes in made:
        axes.set_xlabel(x, color=INK, fontsize=9)
        axes.tick_params(which="both", colors=INK, labelsize=8)
        axes.grid(color=FAINT, alpha=0.3, linewidth=0.5)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
    made[0].set_ylabel(y, color=INK, fontsize=9)
    return figure, list(made)


def add_legend(axes: Axes) -> None:
    axes.legend(fontsize=8, labelcolor=INK, frameon=False)


def draw_trials(facts: Facts) -> list[Drawn]:
    """All that the trials of the search give."""
    found = [_front(facts), _history(facts)]
    if len(facts.complete) < FEW:
        return [drawn for drawn in found if drawn is not None]
    if facts.importances:
        found.append(_importances(facts))
    searched = [
        name for name in facts.study.spec.search.searched if any(name in each.params for each in facts.complete)
    ]
    found += [_slice(facts, name) for name in searched]
    pair = [name for name in facts.importances if name in searched][:2]
    if len(pair) == 2:
        found.append(_pair(facts, *pair))
    return [drawn for drawn in found if drawn is not None]


def _score(trial: TrialResult) -> float:
    return math.nan if trial.score is None else trial.score


def as_id(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "-", text)


def _front(facts: Facts) -> Drawn | None:
    """Clean against mean perturbed accuracy, or two parts of another score."""
    points: dict[int, tuple[float, float]] = {}
    names = (CLEAN, "perturbed")
    for trial in facts.complete:
        mean = trial.attributes.get("mean_perturbed_accuracy")
        if mean is not None and CLEAN in trial.parts:
            points[trial.number] = (trial.parts[CLEAN], mean)
        elif mean is None and len(trial.parts) >= 2:
            first, second, *_ = trial.parts
            names = (first, second)
            points[trial.number] = (trial.parts[names[0]], trial.parts[names[1]])
    if not points:
        return None
    percent = 100 if facts.study.spec.shows_percent else 1
    unit = ", %" if percent == 100 else ""
    x, y = ("clean accuracy", "mean perturbed accuracy") if names == (CLEAN, "perturbed") else names
    figure, (axes,) = new_axes(f"{x}{unit}", f"{y}{unit}")
    numbers = sorted(front(points.items()), key=lambda n: points[n])
    axes.plot(
        [percent * points[n][0] for n in numbers], [percent * points[n][1] for n in numbers], color=FAINT, linewidth=1
    )
    rows, values = [], {}
    by_number = {trial.number: trial for trial in facts.complete}
    for number, (a, b) in points.items():
        trial = by_number[number]
        gid = f"front-{number}"
        axes.plot(percent * a, percent * b, gid=gid, linestyle="", **_style(facts, trial))
        values[gid] = f"{_called(trial)}: {x} {percent * a:.4g}, {y} {percent * b:.4g}"
        rows.append({"trial": number, x: a, y: b, "feasible": trial.feasible})
    _label_kinds(facts, axes)
    caption = (
        f"{x.capitalize()} against {y} of the complete trials, on the data that the search chose by; the line is the "
        "front, where neither can be had without less of the other; hollow: infeasible."
    )
    return Drawn("front", caption, figure, rows, _some(values))


def _style(facts: Facts, trial: TrialResult) -> dict[str, Any]:
    role = "baseline" if trial.baseline else "candidate" if trial.number == facts.best.number else None
    colour = COLOURS.get(role or "", FAINT)
    fill = colour if trial.feasible else "none"
    return {
        "color": colour,
        "markerfacecolor": fill,
        "marker": MARKS.get(role or "", "o"),
        "markersize": 7 if role else 4,
    }


def _label_kinds(facts: Facts, axes: Axes) -> None:
    for role, label in (("baseline", "baseline"), ("candidate", _called(facts.best))):
        axes.plot([], [], linestyle="", marker=MARKS[role], color=COLOURS[role], label=label)
    add_legend(axes)


def _called(trial: TrialResult) -> str:
    return f"baseline (trial {trial.number})" if trial.baseline else f"trial {trial.number}"


def _some(values: dict[str, str]) -> dict[str, str]:
    return values if len(values) <= POINTS_WITH_VALUES else {}


def _history(facts: Facts) -> Drawn:
    """Scores in the order in which trials ended, and the best so far."""
    figure, (axes,) = new_axes("complete trials", "score")
    ended = sorted(facts.complete, key=lambda each: (str(each.finished_at), each.number))
    rows, values, best, so_far = [], {}, None, []
    for position, trial in enumerate(ended, start=1):
        if trial.feasible and (best is None or (_score(trial)) > best):
            best = trial.score
        so_far.append(best)
        gid = f"history-{trial.number}"
        axes.plot(position, _score(trial), gid=gid, linestyle="", **_style(facts, trial))
        values[gid] = f"{_called(trial)}: score {_score(trial):.4f}"
        rows.append({"position": position, "trial": trial.number, "score": trial.score, "best": best})
    axes.step(
        range(1, len(ended) + 1),
        [float("nan") if b is None else b for b in so_far],
        where="post",
        color=INK,
        linewidth=1,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_kinds(facts, axes)
    caption = (
        "The score of each complete trial, in the order in which they ended; the line is the best feasible one so far."
    )
    return Drawn("history", caption, figure, rows, _some(values))


def _importances(facts: Facts) -> Drawn:
    names = list(facts.importances)[::-1]
    figure, (axes,) = new_axes("importance for the score, %", "", height=0.8 + 0.3 * len(names))
    shares = [100 * facts.importances[name] for name in names]
    axes.barh(names, shares, color=COLOURS["candidate"], height=0.6)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {share:.0f}", va="center", fontsize=8, color=INK)
    rows = [{"parameter": name, "importance": facts.importances[name]} for name in reversed(names)]
    caption = "How much of the score's variation each parameter explains (PED-ANOVA, over the complete trials)."
    return Drawn("importances", caption, figure, rows)


def _slice(facts: Facts, name: str) -> Drawn:
    """Score against one parameter."""
    figure, (axes,) = new_axes(name, "score")
    rows, values = [], {}
    seen = [trial for trial in facts.complete if name in trial.params]
    _scale(facts, axes, "x", name, seen)
    for trial in seen:
        gid = f"slice-{as_id(name)}-{trial.number}"
        axes.plot(trial.params[name], _score(trial), gid=gid, linestyle="", **_style(facts, trial))
        values[gid] = f"{_called(trial)}: {name} {_shown(trial.params[name])}, score {_score(trial):.4f}"
        rows.append({"trial": trial.number, name: trial.params[name], "score": trial.score})
    _label_kinds(facts, axes)
    return Drawn(f"score-by-{as_id(name)}", f"Score against {name}.", figure, rows, _some(values))


def _scale(facts: Facts, axes: Axes, axis: str, name: str, seen: Sequence[TrialResult]) -> None:
    row = facts.study.spec.search.rows.get(name)
    logarithmic = bool(getattr(getattr(facts.study.spec.search, name, None), "log", False)) or bool(row and row.log)
    if logarithmic and all(not isinstance(each.params[name], str) and each.params[name] > 0 for each in seen):
        getattr(axes, f"set_{axis}scale")("log")
        shown = getattr(axes, f"{axis}axis")
        values = [each.params[name] for each in seen]
        wide = max(values) > 30 * min(values)
        shown.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        shown.set_major_formatter(StrMethodFormatter("{x:g}"))
        shown.set_minor_formatter(NullFormatter())


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pair(facts: Facts, x: str, y: str) -> Drawn:
    """The two most important parameters, and the score as a colour."""
    figure, (axes,) = new_axes(x, y)
    seen = [trial for trial in facts.complete if x in trial.params and y in trial.params]
    _scale(facts, axes, "x", x, seen)
    _scale(facts, axes, "y", y, seen)
    ranked = sorted(_score(trial) for trial in seen)
    lowest = ranked[len(ranked) // 4] if len(ranked) > 4 else ranked[0]  # a few diverged ones would take all colours
    points = axes.scatter(
        [trial.params[x] for trial in seen],
        [trial.params[y] for trial in seen],
        c=[_score(trial) for trial in seen],
        cmap="viridis",
        vmin=lowest,
        s=30,
    )
    bar = figure.colorbar(points, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label("score", color=INK, fontsize=9)
    rows = [{"trial": trial.number, x: trial.params[x], y: trial.params[y], "score": trial.score} for trial in seen]
    return Drawn("pair", f"The two parameters that matter most, {x} and {y}; bright is good.", figure, rows)
