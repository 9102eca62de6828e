"""The curves of a report: accuracy against severity, and how far features move by depth."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from hpo.conclude.confirmed import Confirmed
from hpo.conclude.report.figures import COLOURS, FAINT, MARKS, Drawn, add_legend, as_id, new_axes
from hpo.conclude.results import Result
from hpo.conclude.words import mean_and_ends


def draw_brittleness(confirmed: Confirmed) -> list[Drawn]:
    """Accuracy against severity of each condition that was measured at several."""
    best = confirmed.candidates[0].trial
    kinds = {
        "baseline": ("baseline", confirmed.of("baseline")),
        "control": (f"control of trial {best}", confirmed.of("control", best)),
        "candidate": (f"trial {best}", confirmed.of("candidate", best)),
    }
    names = dict.fromkeys(each.condition.name for each in confirmed.of("baseline"))
    drawn = []
    for name in names:
        curves = {role: (label, _curve(name, results)) for role, (label, results) in kinds.items() if results}
        if len(curves["baseline"][1]) > 1:
            drawn.append(_curves(confirmed, name, curves))
    return drawn


def _curve(name: str, results: Sequence[Result]) -> list[Result]:
    found = [each for each in results if each.condition.name == name and each.condition.severity is not None]
    return sorted(found, key=lambda each: each.condition.severity or 0)


def _curves(confirmed: Confirmed, name: str, curves: Mapping[str, tuple[str, list[Result]]]) -> Drawn:
    percent = 100 if confirmed.search.spec.shows_percent else 1
    figure, (axes,) = new_axes(f"severity of {name}", "accuracy, %" if percent == 100 else "mean")
    rows, values = [], {}
    for role, (label, results) in curves.items():
        x = [each.condition.severity or 0.0 for each in results]
        mean, low, high = (
            [percent * getattr(each.accuracy, key) for each in results] for key in ("mean", "low", "high")
        )
        colour = COLOURS[role]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, mean, color=colour, label=label, linewidth=1.5)
        for position, each in enumerate(results):
            gid = f"{as_id(name)}-{role}-{position}"
            axes.plot(x[position], mean[position], color=colour, marker=MARKS[role], markersize=4, gid=gid)
            mean_shown, ends = mean_and_ends(confirmed, each.accuracy, sign=False)
            values[gid] = f"{label}, {name} {each.condition.severity:g}: {mean_shown} ({ends})"
            rows.append(
                {
                    "configuration": label,
                    "severity": x[position],
                    "mean": mean[position],
                    "low": low[position],
                    "high": high[position],
                }
            )
    for each in curves["baseline"][1]:
        if each.condition.main and each.condition.severity is not None:
            axes.axvline(each.condition.severity, color=FAINT, linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0)
    add_legend(axes)
    held_out = ", on which nothing was trained (held out)" if name in confirmed.search.spec.hold_outs else ""
    caption = f"Accuracy under {name}{held_out}, with 95 % intervals; dotted: the severity that the search scored."
    return Drawn(f"brittleness-{as_id(name)}", caption, figure, rows, values)


def draw_moved(moved: Mapping[str, Sequence[float]], perturbed: str, best: str) -> Drawn:
    """How far a perturbation moves the features of each network, unit by unit."""
    figure, (axes,) = new_axes("unit of the network, from the input on", "features moved by, %")
    rows, values = [], {}
    for who, shares in moved.items():
        role, label = ("baseline", who) if who == "baseline" else ("candidate", best)
        depths = range(1, len(shares) + 1)
        axes.plot(depths, [100 * share for share in shares], color=COLOURS[role], label=label, linewidth=1.5)
        for depth, share in zip(depths, shares, strict=True):
            gid = f"moved-{role}-{depth}"
            axes.plot(depth, 100 * share, color=COLOURS[role], marker=MARKS[role], markersize=4, gid=gid)
            values[gid] = f"{label}, unit {depth}: {100 * share:.1f} %"
            rows.append({"network": label, "unit": depth, "moved": share})
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)
    caption = f"How far {perturbed} moves the features, in relation to their length: the mean over images, by depth."
    return Drawn("features-moved", caption, figure, rows, values)
