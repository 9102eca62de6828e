"""What a worker writes: lines for people, or with HPO_LOG=json a JSON object a line, for programs that collect logs."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import click

LOG = "HPO_LOG"
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039  (never changed in place)


def is_json() -> bool:
    return os.environ.get(LOG) == "json"


def log(text: str, level: str = "info") -> None:
    """Writes a line to stdout. level: info or error."""
    if is_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": now, "level": level, "text": text, **_about.get()})
    click.echo(text)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Lines that are written in this block say in JSON what they are about."""
    before = _about.set(_about.get() | fields)
    try:
        yield
    finally:
        _about.reset(before)


def text_of(line: str) -> str:
    """The text of a line, whichever kind it is of."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    return str(found.get("text", line)) if isinstance(found, dict) else line
