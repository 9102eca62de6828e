"""HPO_HOOK: a command that is told, as JSON on its stdin, of a new best trial, and of a study that ended or stopped.

It runs beside the worker, which never waits for it but at its own end; what it does wrong is said in a line.
"""

import json
import os
import shlex
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from hpo.search.sql.news import Event

HOOK_VARIABLE = "HPO_HOOK"
HOOK_SECS, PARTING_SECS = 60.0, 10.0
"""How long it may take, and how long a worker that ends waits for it."""
Say = Callable[[str], None]

_running: list[threading.Thread] = []


def has_hook() -> bool:
    return bool(os.environ.get(HOOK_VARIABLE))


def call_hook(event: Event, about: dict[str, Any], say: Say) -> None:
    """Starts the command with `event` and these facts; numbers that JSON has not are null."""
    finite = json.loads(json.dumps(about), parse_constant=lambda _: None)
    text = json.dumps({"event": event, **finite})
    thread = threading.Thread(target=_run, args=(os.environ[HOOK_VARIABLE], text, say), daemon=True)
    thread.start()
    _running[:] = [each for each in (*_running, thread) if each.is_alive()]


def wait_for_hooks() -> None:
    """Gives those that are running a little time, before the process ends."""
    for thread in _running:
        thread.join(PARTING_SECS)


def _run(command: str, text: str, say: Say) -> None:
    try:
        ran = subprocess.run(
            shlex.split(command), input=text, capture_output=True, text=True, timeout=HOOK_SECS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        say(f"{HOOK_VARIABLE} failed: {error}")
        return
    if ran.returncode:
        reason = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        say(f"{HOOK_VARIABLE} ended with exit code {ran.returncode}: {reason[0]}")
