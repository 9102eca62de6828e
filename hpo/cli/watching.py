"""`hpo status` and `hpo watch`: looks at studies, once or again and again."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial

import click
import sqlalchemy as sa
from rich.live import Live

from hpo.cli import tables
from hpo.search.sql.heartbeats import HEARTBEAT_INTERVAL_SECS, reap_if_allowed
from hpo.search.sql.outages import outlast
from hpo.search.sql.status import StudyStatus, status
from hpo.search.sql.studies import find_studies
from hpo.stopping import Stopped, stop_on_signals


def look(engine: sa.Engine, names: Sequence[str], tidy: bool = True) -> list[StudyStatus]:
    """The named studies, or all; first gives back what dead workers had."""
    found = find_studies(engine, names)
    for study in found:
        if tidy:
            reap_if_allowed(engine, study.study_id)
    return [status(engine, study) for study in found]


def watch(engine: sa.Engine, names: Sequence[str], interval: float) -> None:
    """Shows the same every `interval` seconds until all budgets are used, or Ctrl-C is pressed."""
    stop_on_signals()
    with contextlib.suppress(Stopped):
        _watch(engine, names, interval)


def _watch(engine: sa.Engine, names: Sequence[str], interval: float) -> None:
    out = tables.console()
    say = partial(click.echo, err=True)
    tidied = 0.0
    shown = None
    with Live(console=out, auto_refresh=False, screen=False, vertical_overflow="ellipsis") as live:
        while True:
            due = time.monotonic() - tidied > HEARTBEAT_INTERVAL_SECS
            records = outlast(partial(look, engine, names, due), say)
            tidied = time.monotonic() if due else tidied
            records.sort(key=lambda record: record.is_done)  # what goes on first: a terminal is not endless
            if out.is_terminal:
                live.update(tables.status_view(records, tracebacks=False), refresh=True)
            elif (counts := [record.counts for record in records]) != shown:
                shown = counts
                out.print(tables.status_view(records, tracebacks=False))
            if all(record.is_done or record.study.stopped for record in records):
                return
            time.sleep(interval)
