"""Puts facts, figures and looks into one self-contained HTML page."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import tomli_w
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hpo import __version__
from hpo.artifacts import Artifacts
from hpo.conclude.confirmed import Confirmed
from hpo.conclude.report.curves import draw_brittleness, draw_moved
from hpo.conclude.report.facts import Facts
from hpo.conclude.report.figures import FEW, Drawn, draw_trials
from hpo.conclude.report.looks import look
from hpo.conclude.results import Condition, Difference, Result
from hpo.conclude.statistics import fewest_seeds
from hpo.conclude.words import conclusions, mean_and_ends, named, points, where, with_ends
from hpo.counted import counted
from hpo.errors import HpoError
from hpo.trial_result import CLEAN, TrialResult

TEMPLATE = Path(__file__).parent / "template.html"


@dataclass(frozen=True)
class Report:
    """html: the whole page; figures: also for files; lacking: why it has no pictures, if it has none."""

    html: str
    figures: Sequence[Drawn]
    lacking: str | None


def make_report(engine: sa.Engine, facts: Facts, artifacts: Artifacts) -> Report:
    """Draws everything. Images or weights that are not at hand are left out, and that is said."""
    looks, lacking = None, None
    try:
        looks = look(engine, facts, artifacts)
    except (HpoError, OSError) as error:
        lacking = str(error)
    curves = draw_brittleness(facts.confirmed) if facts.confirmed else []
    figures = [
        *curves,
        *draw_trials(facts),
        *([draw_moved(looks.moved, looks.perturbed, f"trial {facts.best.number}")] if looks else []),
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "counted": counted}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = page.render(
        facts=facts,
        looks=looks,
        lacking=lacking,
        headline=headline(facts),
        rows=result_rows(facts),
        conclusions=conclusions(facts.confirmed).as_headed() if facts.confirmed else {},
        figures={drawn.name: Markup(drawn.svg()) for drawn in figures},  # noqa: S704 (drawn here, values escaped)
        captions={drawn.name: drawn.caption for drawn in figures},
        made=_made(facts),
        commands=_commands(facts),
        spec=tomli_w.dumps(facts.study.spec.model_dump(mode="json", exclude_none=True)),
        gain=_gain(facts),
        best_params=facts.shown_params,
        few=FEW,
        version=__version__,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return Report(html, figures, lacking)


def headline(facts: Facts) -> str:
    """The result in a sentence."""
    if (confirmed := facts.confirmed) is not None:
        trial = confirmed.candidates[0].trial
        main = [each for each in confirmed.of("candidate", trial) if each.condition.claimed]
        changes = [(each.to_baseline, each.condition) for each in main if each.to_baseline]
        held = [_change(confirmed, *change) for change in changes if change[0].holds]
        others = [_change(confirmed, *change) for change in changes if not change[0].holds]
        fewest = fewest_seeds(confirmed.claims) if confirmed.claims else 0
        if held:
            first = f"What holds: {'; '.join(held)}."
        elif confirmed.seeds < fewest:
            first = (
                f"So few seeds are not enough to claim anything, however large: it takes {fewest} (--seeds {fewest})."
            )
        else:
            first = "No difference to the baseline is large enough to claim."
        found = [
            first,
            *([f"What cannot be told from chance: {'; '.join(others)}."] if others else []),
        ]
        return (
            f"Trial {trial} against the baseline, both trained again on {counted(confirmed.seeds, 'fresh seed')} and "
            f"scored on locked test data. {' '.join(found)}"
        )
    gains = [
        f"{_points(facts, value - facts.baseline.parts[name])} {'on clean data' if name == CLEAN else f'under {name}'}"
        for name, value in facts.best.parts.items()
        if name in facts.baseline.parts
    ]
    return (
        f"On the data that the search chose by, and with one seed, trial {facts.best.number} differs from the baseline "
        f"by {'; '.join(gains)}."
    )


def _change(confirmed: Confirmed, difference: Difference, condition: Condition) -> str:
    mean, ends = mean_and_ends(confirmed, difference.interval)
    return f"{mean}{points(confirmed)} {where(confirmed, condition)} ({ends})"


def _points(facts: Facts, value: float) -> str:
    return f"{100 * value:+.1f} points" if facts.study.spec.shows_percent else f"{value:+.4g}"


def result_rows(facts: Facts) -> list[dict[str, Any]]:
    """The table of results: a row a condition; without a confirmation, of the search's own figures."""
    confirmed = facts.confirmed
    if confirmed is None:
        images = facts.best.images_of
        return [
            {
                "condition": named(facts.study.spec, name),
                "severity": "",
                "images": f"{images[name]:,}" if name in images else "",
                "main": True,
                "shown_first": True,
                "baseline": _part(facts, facts.baseline, name),
                "control": None,
                "best": _part(facts, facts.best, name),
                "to_baseline": _points(facts, facts.best.parts[name] - facts.baseline.parts[name]),
                "to_control": None,
                "holds": None,
                "counts": "",
            }
            for name in facts.best.parts
            if name in facts.baseline.parts
        ]
    trial = confirmed.candidates[0].trial
    baseline, control = (
        {each.condition.key: each for each in some}
        for some in (confirmed.of("baseline"), confirmed.of("control", trial))
    )
    return [
        {
            "condition": named(facts.study.spec, each.condition.name),
            "severity": "" if each.condition.severity is None else f"{each.condition.severity:g}",
            "images": "" if each.condition.images is None else f"{each.condition.images:,}",
            "main": each.condition.main,
            "shown_first": each.condition.main or each.condition.name.endswith("itself"),
            "baseline": _with_interval(confirmed, baseline[each.condition.key]),
            "control": _with_interval(confirmed, control[each.condition.key]) if control else None,
            "best": _with_interval(confirmed, each),
            "to_baseline": _difference(confirmed, each.to_baseline),
            "to_control": _difference(confirmed, each.to_control) if control else None,
            "holds": each.to_baseline.holds if each.to_baseline and each.condition.claimed else None,
            "counts": _counts(baseline[each.condition.key], each),
        }
        for each in confirmed.of("candidate", trial)
    ]


def _part(facts: Facts, trial: TrialResult, name: str) -> str:
    value = trial.parts[name]
    if name in trial.correct:
        return f"{100 * value:.1f} % ({trial.correct[name]:,})"
    return f"{value:.4g}"


def _with_interval(confirmed: Confirmed, result: Result) -> Markup:
    mean, ends = mean_and_ends(confirmed, result.accuracy, sign=False)
    return Markup('{} <span class="wide">({})</span>').format(mean, ends)


def _difference(confirmed: Confirmed, difference: Difference | None) -> Markup:
    if difference is None:
        return Markup("")
    mean, ends = mean_and_ends(confirmed, difference.interval)
    return Markup('{} <span class="ends">({})</span>').format(mean, ends)


def _counts(baseline: Result, best: Result) -> str:
    """Correct images by seed, for the mouse."""
    if baseline.correct is None or best.correct is None:
        return ""
    return (
        f"correct by seed: baseline {', '.join(map(str, baseline.correct))}; "
        f"trial {best.trial} {', '.join(map(str, best.correct))}"
    )


def _gain(facts: Facts) -> str | None:
    """What is confirmed of the gain in score."""
    if facts.confirmed is None:
        return None
    return with_ends(facts.confirmed, facts.confirmed.gains[facts.best.number]) + points(facts.confirmed)


def duration(hours: float) -> str:
    """`12 min`, `3.4 hours`."""
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} hours"


def _made(facts: Facts) -> dict[str, str]:
    """What made the best trial, by name."""
    made = {key: str(value) for key, value in facts.best.made_by.items() if value is not None and key != "steps"}
    if made.get("commit", "").endswith("+"):
        made["commit"] += " (with changes that are in no commit)"
    if facts.starts_at_random:
        made["weights"] = "none"
    hosts = sorted({str(each.attributes.get("host")) for each in facts.trials if each.attributes.get("host")})
    devices = sorted({str(each.attributes.get("device")) for each in facts.trials if each.attributes.get("device")})
    return made | {"all hosts": ", ".join(hosts), "all devices": ", ".join(devices)}


def _commands(facts: Facts) -> list[tuple[str, str]]:
    name = shlex.quote(facts.study.name)
    asked = ""
    if facts.confirmed is not None:
        asked = f" --top {len(facts.confirmed.candidates)} --seeds {facts.confirmed.seeds}"
    return [
        ("hpo run study.toml", "the search, with the study file below"),
        (f"hpo confirm {name}{asked}", "the confirmation"),
        (f"hpo best {name} --toml > best.toml; hpo run best.toml", "the best one, and the baseline"),
        (f"hpo report {name}", "this page"),
    ]
