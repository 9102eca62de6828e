"""What `hpo confirm` prints: a table for each candidate, and what the numbers allow to say."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpo.cli.tables import new_table
from hpo.conclude.confirmed import Confirmed
from hpo.conclude.results import Difference, Result
from hpo.conclude.words import amount, conclusions, named, with_ends
from hpo.search.confirmation import Candidate


def print_confirmed(out: Console, confirmed: Confirmed) -> None:
    """The tables, and the conclusions below them."""
    for candidate in confirmed.candidates:
        out.print(_candidate_table(confirmed, candidate))
    for heading, sentences in conclusions(confirmed).as_headed().items():
        out.print(Text(heading, style="bold"))
        for sentence in sentences:
            out.print(Padding(Text(sentence), (0, 0, 0, 2)))


def _candidate_table(confirmed: Confirmed, candidate: Candidate) -> Table:
    """Means over seeds, in percent where they are shares, and differences with their intervals; a row a condition, main
    ones not dimmed.
    """
    trial = candidate.trial
    baseline, control, own = (
        {each.condition.key: each for each in some}
        for some in (confirmed.of("baseline"), confirmed.of("control", trial), confirmed.of("candidate", trial))
    )
    table = new_table(f"{confirmed.search.name}: trial {trial} on {confirmed.seeds} fresh seeds")
    table.add_column("condition")
    with_control = ["control"] if control else []
    differences = ["− baseline (95 %)", *(["− control (95 %)"] if control else [])]  # noqa: RUF001
    for heading in ("severity", "images", "baseline", *with_control, f"trial {trial}", *differences):
        table.add_column(heading, justify="right")
    for key, result in own.items():
        condition = result.condition
        table.add_row(
            named(confirmed.search.spec, condition.name),
            "" if condition.severity is None else f"{condition.severity:g}",
            "" if condition.images is None else f"{condition.images:,}",
            *(_mean(confirmed, some[key]) for some in (baseline, control, own) if some),
            _difference(confirmed, result.to_baseline),
            *([_difference(confirmed, result.to_control)] if control else []),
            style="" if condition.main else "dim",
        )
    return table


def _mean(confirmed: Confirmed, result: Result) -> str:
    return amount(confirmed, result.accuracy.mean, sign=False)


def _difference(confirmed: Confirmed, difference: Difference | None) -> str:
    return "" if difference is None else with_ends(confirmed, difference.interval)
