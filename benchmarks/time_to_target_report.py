"""What the runs of time_to_target.py say: a table of when each system had the target score, and a plot of the scores.

`python benchmarks/time_to_target.py report` prints and draws them.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "time_to_target"
SYSTEMS = ["plain", "ray", "syne-tune", "hpo"]


def finished_runs(precision: str) -> list[dict[str, Any]]:
    """Of machines whose precision is this."""
    files = sorted((RESULTS / precision).glob("*-*.json"))
    if not files:
        raise SystemExit(f"no runs in {RESULTS / precision}")
    return [json.loads(file.read_text()) for file in files]


def best_score(result: dict[str, Any]) -> float:
    return max(report["score"] for report in result["reports"])


def first_time(result: dict[str, Any], target: float) -> float:
    """Seconds; the whole length of the run if it never had it."""
    times = [report["time"] for report in result["reports"] if report["score"] >= target]
    return min([*times, result["conditions"]["minutes"] * 60])


def print_and_draw(precision: str) -> None:
    """Prints the table of this kind of machine's runs and draws their plot."""
    results = finished_runs(precision)
    by_system = {name: [r for r in results if r["system"] == name] for name in SYSTEMS}
    by_system = {name: found for name, found in by_system.items() if found}
    target = statistics.median(best_score(result) for result in by_system["plain"])
    print(
        f"target: {target:.4f}, the median of the best scores of {len(by_system['plain'])} runs of the plain script\n"
    )
    print(f"{'system':10} {'seeds':>5} {'median s to target':>19}  {'all runs':30} {'median best':>11}  all runs")
    for name, found in by_system.items():
        times = [first_time(result, target) for result in found]
        bests = [best_score(result) for result in found]
        shown_times = " ".join(
            f"{seconds:.0f}" if seconds < result["conditions"]["minutes"] * 60 else "never"
            for result, seconds in zip(found, times, strict=True)
        )
        shown_bests = " ".join(f"{score:.4f}" for score in bests)
        print(
            f"{name:10} {len(found):5} {statistics.median(times):19.0f}  {shown_times:30} "
            f"{statistics.median(bests):11.4f}  {shown_bests}"
        )
    draw(by_system, target, RESULTS / f"{precision}.png")


def draw(by_system: dict[str, list[dict[str, Any]]], target: float, path: Path) -> None:
    """The best score so far over time: all runs thin, each system in its colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for colour, (name, found) in enumerate(by_system.items()):
        for position, result in enumerate(found):
            ordered = sorted(result["reports"], key=lambda report: report["time"])
            best = np.maximum.accumulate([report["score"] for report in ordered])
            times = [report["time"] / 60 for report in ordered]
            end_minute = result["conditions"]["minutes"]
            axes.step(
                [*times, end_minute],
                [*best, best[-1]],
                where="post",
                color=f"C{colour}",
                alpha=0.7,
                linewidth=1.2,
                label=name if position == 0 else None,
            )
    axes.axhline(target, color="grey", linestyle=":", label=f"target {target:.3f}")
    axes.set(xlabel="minutes", ylabel="best score so far", ylim=(0.3, None))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    print(f"\nplot: {path}")
