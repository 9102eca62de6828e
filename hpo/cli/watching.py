"""`hpo status` and `hpo watch`: the status of studies, once or live."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import click
import sqlalchemy as sa
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from hpo.cli import tables
from hpo.cli.status_tables import status_view
from hpo.search.sql.heartbeats import HEARTBEAT_INTERVAL_SECS, reap_if_allowed
from hpo.search.sql.open_studies import open_and_latest
from hpo.search.sql.outages import outlast
from hpo.search.sql.status import StudyStatus, status
from hpo.search.sql.studies import find_studies
from hpo.stopping import Stopped, stop_on_signals

LATEST = 20


@dataclass(frozen=True)
class Overview:
    """records: of the studies that were asked for; left_out: how many finished ones are not among them."""

    records: list[StudyStatus]
    left_out: int = 0

    def __rich__(self) -> RenderableType:
        more = f"{self.left_out:,} more finished studies; `hpo status NAME` shows one, --json all"
        return Group(status_view(self.records, tracebacks=False), *([Text(f"… and {more}")] if self.left_out else []))


def look(engine: sa.Engine, names: Sequence[str], reap: bool = True, everything: bool = False) -> Overview:
    """The status of the named studies; without a name, of all that are not finished and of LATEST others, or of
    everything. reap: first requeue the trials of dead workers.
    """
    if names or everything:
        found, left_out = find_studies(engine, names), 0
    else:
        found, left_out = open_and_latest(engine, LATEST)
    for study in found:
        if reap:
            reap_if_allowed(engine, study.study_id)
    return Overview([status(engine, study) for study in found], left_out)


def watch(engine: sa.Engine, names: Sequence[str], interval: float) -> None:
    """Shows the status every `interval` seconds until all budgets are used up or Ctrl-C is pressed."""
    stop_on_signals()
    with contextlib.suppress(Stopped):
        _watch(engine, names, interval)


def _watch(engine: sa.Engine, names: Sequence[str], interval: float) -> None:
    out = tables.console()
    say = partial(click.echo, err=True)
    reaped_at = 0.0
    shown = None
    with Live(console=out, auto_refresh=False, screen=False, vertical_overflow="ellipsis") as live:
        while True:
            due = time.monotonic() - reaped_at > HEARTBEAT_INTERVAL_SECS
            overview = outlast(partial(look, engine, names, due), say)
            records = overview.records
            reaped_at = time.monotonic() if due else reaped_at
            records.sort(key=lambda record: record.is_done)  # a terminal may be too short for all
            if out.is_terminal:
                live.update(overview, refresh=True)
            elif (counts := [record.counts for record in records]) != shown:
                shown = counts
                out.print(overview)
            if all(record.is_done or record.study.stopped for record in records):
                return
            time.sleep(interval)
