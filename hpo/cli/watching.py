"""`hpo status` and `hpo watch`: the status of studies, once or live."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial

import click
import sqlalchemy as sa
from rich.live import Live

from hpo.cli import tables
from hpo.cli.status_tables import status_view
from hpo.search.sql.heartbeats import HEARTBEAT_INTERVAL_SECS, reap_if_allowed
from hpo.search.sql.outages import outlast
from hpo.search.sql.status import StudyStatus, status
from hpo.search.sql.studies import find_studies
from hpo.stopping import Stopped, stop_on_signals


def look(engine: sa.Engine, names: Sequence[str], reap: bool = True) -> list[StudyStatus]:
    """The status of the named studies, or of all. reap: first requeue the trials of dead workers."""
    found = find_studies(engine, names)
    for study in found:
        if reap:
            reap_if_allowed(engine, study.study_id)
    return [status(engine, study) for study in found]


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
            records = outlast(partial(look, engine, names, due), say)
            reaped_at = time.monotonic() if due else reaped_at
            records.sort(key=lambda record: record.is_done)  # a terminal may be too short for all
            if out.is_terminal:
                live.update(status_view(records, tracebacks=False), refresh=True)
            elif (counts := [record.counts for record in records]) != shown:
                shown = counts
                out.print(status_view(records, tracebacks=False))
            if all(record.is_done or record.study.stopped for record in records):
                return
            time.sleep(interval)
