"""Tables for the terminal, the lines around them, and how numbers are formatted."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpo.conclude.wilson import half_width
from hpo.counted import counted
from hpo.search.sql import queries
from hpo.search.sql.studies import Study
from hpo.study_file.images import ImageSpec
from hpo.trial_result import TrialResult

WIDTH_WITHOUT_TERMINAL = 120
FEW_IMAGES = 5


def console(stderr: bool = False) -> Console:
    """The terminal; or a log or pipe, which has no width of its own, with room for whole tables."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    )


def percent(fraction: float | None) -> str:
    """`55.4 %`, or a dash if there is no measurement."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"  # noqa: RUF001


def shown_score(score: float | None) -> str:
    """Four decimals, or as many digits where those would say nothing or too much; a dash if there is no score."""
    if score is None:
        return "–"  # noqa: RUF001
    return f"{score:.4f}" if score == 0 or 1e-3 <= abs(score) < 1e6 else f"{score:.4g}"


def shown(value: Any) -> str:
    """A parameter's value, abbreviated."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def new_table(title: str | None = None) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def shown_part(value: float | None, study: Study) -> str:
    """A part of the score: `55.4 %` if parts are shares, else four significant digits; a dash where there is none."""
    if study.spec.shows_percent or value is None:
        return percent(value)
    return f"{value:.4g}"


def results_table(study: Study, results: Sequence[TrialResult], baseline: TrialResult | None, title: str) -> Table:
    """The results, best first, and below them the baseline, with the parameters that differ; narrow enough for 80
    columns where these are few.

    With constraints there is a column that says which are feasible, of one character: there is no room for a word.
    """
    rows = [*results, *([baseline] if baseline else [])]
    constrained = study.spec.is_constrained or any(row.violation is not None for row in rows)
    parts = list(dict.fromkeys(name for row in rows for name in row.parts))
    params = _different(study, rows)
    table = new_table(title)
    mark_heading = [""] if constrained else []
    for heading in ("trial", *mark_heading, "score", *parts, *params):
        short = heading.replace("augmentation", "augment.").replace("_", "\n").replace("-", "\n")
        table.add_column(short, justify="right", overflow="fold")
    for row in results:
        cells = _cells(study, row, parts, params, constrained)
        table.add_row(str(row.number), *cells, style="" if row.feasible else "dim")
    if baseline:
        table.add_section()
        table.add_row("baseline", *_cells(study, baseline, parts, params, constrained))
    return table


def _different(study: Study, rows: Sequence[TrialResult]) -> list[str]:
    """The parameters that are searched, or that the baseline has otherwise."""
    names = dict.fromkeys(name for row in rows for name in row.params)
    searched = study.spec.search.searched
    return [name for name in names if name in searched or len({row.params.get(name) for row in rows}) > 1]


def _fixed(study: Study, rows: Sequence[TrialResult]) -> list[str]:
    """The other parameters with their value, but for those that have it where a study file leaves them out."""
    known, different = study.spec.search.rows, _different(study, rows)
    return [
        f"{name} {shown(value)}"
        for name, value in rows[0].params.items()
        if name not in different and (name not in known or known[name].plain != value)
    ]


def _mark(row: TrialResult) -> str:
    """Whether it is feasible; a dash while that is unknown: until both the trial and the baseline are complete."""
    if row.violation is None:
        return "–"  # noqa: RUF001
    return "✓" if row.feasible else "✗"


def _cells(
    study: Study, row: TrialResult, parts: Sequence[str], params: Sequence[str], constrained: bool = False
) -> list[str]:
    return [
        *([_mark(row)] if constrained else []),
        shown_score(row.score),
        *(shown_part(row.parts.get(name), study) for name in parts),
        *(shown(row.params.get(name, "")) for name in params),
    ]


def print_best(
    out: Console, engine: sa.Engine, study: Study, results: Sequence[TrialResult], selection: str = ""
) -> None:
    """Prints these configurations, how precise their accuracies are, and how the first compares with the baseline.

    selection: how they were selected, for the title. results: at least one.
    """
    baseline = queries.baseline_trial(engine, study.name)
    best = results[0]
    title = f"Best configurations of {study.name}{f', {selection}' if selection else ''}"
    out.print(results_table(study, results, baseline, title))
    if fixed := _fixed(study, [*results, *([baseline] if baseline else [])]):
        out.print(f"The same in all trials: {', '.join(fixed)}.")
    if best.images and best.parts:
        images = best.images_of
        width = max(half_width(share, best.images) for name, share in best.parts.items() if images[name] == best.images)
        fewer = [f"{name} on {count} of them" for name, count in images.items() if count < best.images]
        out.print(
            f"Accuracies on {counted(best.images, 'tuning image')}, the same for all trials"
            f"{''.join(f', {each}' for each in fewer)}; each trial was trained once (seed {study.spec.seed}). "
            f"{'On all of them' if fewer else 'With this many images'} an accuracy is known to ± {100 * width:.1f} "
            "points (95 % confidence)."
        )
    if held_out := study.spec.hold_outs:
        out.print(f"Held out, which means measured but never trained on: {', '.join(held_out)}.")
    for line in explain_feasibility(study, best.images):
        out.print(line)
    if best.baseline and not selection:
        out.print(f"{nothing_beats_baseline(study)}.")
    if baseline and baseline.number != best.number and best.parts:
        out.print(_comparison(study, best, baseline))


def _max_clean_drop(study: Study) -> float | None:
    return study.spec.objective.max_clean_drop if isinstance(study.spec, ImageSpec) else None


def explain_feasibility(study: Study, images: int | None) -> list[str]:
    """If the study has a max_clean_drop: the legend of the marks, and a warning if it is hardly measurable."""
    limit = _max_clean_drop(study)
    if limit is None:
        return []
    points = "1 point" if limit == 0.01 else f"{100 * limit:g} points"
    legend = f"✓ feasible: at most {points} of clean accuracy below the baseline (max_clean_drop); ✗ infeasible."
    return [legend, *warn_of_few_images(study, images)]


def warn_of_few_images(study: Study, images: int | None) -> list[str]:
    """A warning if max_clean_drop amounts to only a few tuning images."""
    limit = _max_clean_drop(study)
    if limit is None or not images or limit * images >= FEW_IMAGES:
        return []
    allowed = f"max_clean_drop = {limit:g} is {limit * images:.2g} of {counted(images, 'tuning image')}"
    advice = "raise it, or use more tuning images (data.validation_fraction)"
    return [f"Warning: {allowed}: a single image can decide whether a trial is feasible; {advice}."]


def nothing_beats_baseline(study: Study) -> str:
    """The statement, without a full stop, for when the best trial is the baseline."""
    return f"No {'feasible ' if study.spec.is_constrained else ''}trial beats the baseline"


def _comparison(study: Study, best: TrialResult, baseline: TrialResult) -> str:
    gains = {name: best.parts[name] - baseline.parts[name] for name in best.parts if name in baseline.parts}
    in_points = study.spec.shows_percent
    listed = [f"{name} {100 * gain:+.1f}" if in_points else f"{name} {gain:+.4g}" for name, gain in gains.items()]
    unit = ", in percentage points" if in_points else ""
    return f"Trial {best.number} compared with the baseline{unit}: {', '.join(listed)}."


def history_table(study: Study, results: Sequence[TrialResult], began: datetime | None, title: str) -> Table:
    """A row for each trial that was better than all before it, and how long after the first one's start it ended."""
    table = new_table(title)
    parts = list(dict.fromkeys(name for result in results for name in result.parts))
    for heading in ("after", "trial", "score", *(name.replace("-", "\n") for name in parts)):
        table.add_column(heading, justify="right")
    for result in results:
        after = (result.finished_at - began).total_seconds() if result.finished_at and began else None
        table.add_row(duration(after), str(result.number), *_cells(study, result, parts, ()))
    return table


def importances_table(shares: Mapping[str, float], title: str) -> Table:
    """A row per parameter, with its share as a number and as a bar."""
    table = new_table(title)
    table.add_column("parameter")
    table.add_column("importance", justify="right")
    table.add_column("")
    for name, share in shares.items():
        table.add_row(name, percent(share), "█" * round(30 * share))
    return table


def duration(secs: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`, or a dash."""
    if secs is None:
        return "–"  # noqa: RUF001
    if secs < 100:
        return f"{secs:.0f} s"
    minutes = round(secs / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(secs / 3600)
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
