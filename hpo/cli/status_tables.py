"""What `hpo status` and `hpo watch` print: studies, running trials, and what needs attention."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpo.cli.tables import duration, new_table, shown_score, warn_of_few_images
from hpo.counted import counted
from hpo.errors import reason_in
from hpo.search.sql.status import RunningTrial, Split, StudyStatus

RUNNING_SHOWN = 20


def status_view(records: Sequence[StudyStatus], tracebacks: bool) -> Group:
    """A row per study; below it running trials, failures and whatever else needs attention."""
    running = [(record, trial) for record in records for trial in record.running]
    parts: list[RenderableType] = [_studies_table(records)]
    if running:
        parts.append(_running_table(running[:RUNNING_SHOWN]))
    if len(running) > RUNNING_SHOWN:
        parts.append(Text(f"… and {len(running) - RUNNING_SHOWN} more; --json lists them all"))
    for record in records:
        name = record.study.name
        parts += [Text(f"{name}: {line}") for line in troubles_of(record.running)]
        for number, traceback in record.failures:
            reason = traceback.strip() if tracebacks else reason_in(traceback)
            parts.append(Text(f"{name}: trial {number} failed: {reason}"))
        if record.split:
            parts.append(Text(f"{name}: {split_line(record.split)}"))
            parts += [Text(f"{name}: {line}") for line in warn_of_few_images(record.study, record.split.tuning)]
        if number := record.interrupted:
            verb = "was" if number == 1 else "were"
            parts.append(Text(f"{name}: {counted(number, 'trial')} {verb} interrupted and requeued"))
        if number := record.counts.paused:
            verb = "is" if number == 1 else "are"
            parts.append(Text(f"{name}: {counted(number, 'trial')} {verb} paused, and resumed if promoted"))
        if record.study.stopped:
            parts.append(Text(f"{name} is {record.study.why_stopped}"))
    return Group(*parts)


def split_line(split: Split) -> str:
    """How many images are used for what."""
    images = f"{split.train:,} training, {split.tuning:,} tuning and {counted(split.test, 'test image')}"
    return f"{images} of {counted(split.classes, 'class')}"


def _studies_table(records: Sequence[StudyStatus]) -> Table:
    table = new_table()
    table.add_column("study", overflow="fold")
    counted = ("finished", "complete", "pruned", "failed", "running")  # waiting ones are left out: 80 columns are few
    for heading in (*counted, "best", "trials\n/hour", "time\nleft"):
        table.add_column(heading, justify="right")
    for record in records:
        counts = record.counts
        numbers = (counts.complete, counts.pruned, record.failed, counts.running)
        speed = record.trials_per_hour
        table.add_row(
            Text(record.study.name),
            f"{counts.finished}/{record.study.budget}",
            *map(str, numbers),
            shown_score(record.best.score if record.best else None),
            f"{speed:.3g}" if speed else "–",  # noqa: RUF001
            "done" if record.is_done else "stopped" if record.study.stopped else duration(record.secs_left),
        )
    return table


def _running_table(running: Sequence[tuple[StudyStatus, RunningTrial]]) -> Table:
    table = new_table()
    for heading in ("study", "trial", "worker", "step", "running\nfor", "heartbeat"):
        table.add_column(heading, justify="left" if heading in ("study", "worker") else "right", overflow="fold")
    for record, trial in running:
        beat = trial.secs_since_heartbeat
        table.add_row(
            Text(record.study.name),
            str(trial.number),
            Text(trial.worker or ""),
            f"{trial.step}/{record.study.spec.steps}",
            duration(trial.secs_since_start),
            "none" if beat is None else f"{beat:.0f} s ago",
        )
    return table


def troubles_of(running: Sequence[RunningTrial]) -> list[str]:
    return [f"trial {trial.number} waits: {trial.trouble}" for trial in running if trial.trouble]
