"""Live progress of trials and of long preparations: a bar in a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hpo.cli.status_tables import split_line, troubles_of
from hpo.cli.tables import console, shown, shown_part, shown_score, warn_of_few_images
from hpo.errors import reason_in
from hpo.search.confirmation import run_name
from hpo.search.sql import queries
from hpo.search.sql.attributes import CONFIRMS_KEY
from hpo.search.sql.outages import outlast
from hpo.search.sql.status import RunningTrial, progress, read_split
from hpo.search.sql.studies import Study
from hpo.trial_result import TrialResult

POLL_SECS = 0.5
QUIET_SECS = 30.0
"""In a log, the running trials are reported after this long without an event."""
ENDED = ("COMPLETE", "PRUNED", "FAIL")


class EndedTrials:
    """Reports the trials of a study as they end or are paused, each once."""

    def __init__(self, engine: sa.Engine, study: Study, say: Callable[[str], None], prefix: str = "") -> None:
        self._engine = engine
        self.study = study
        self._say = say
        self._prefix = prefix
        self._seen = {trial.number for trial in queries.trials_in(engine, study.name, ENDED)}
        self._seen_paused = {trial.number for trial in queries.paused_trials(engine, study.name)}

    def report_new(self) -> bool:
        """Reports those that ended since the last call; whether there were any."""
        ask = partial(outlast, say=self._say)
        ended = ask(partial(queries.trials_in, self._engine, self.study.name, ENDED, self._seen))
        paused = ask(partial(queries.paused_trials, self._engine, self.study.name, self._seen_paused))
        self._seen.update(trial.number for trial in ended)
        self._seen_paused.update(trial.number for trial in paused)
        for trial in (*ended, *paused):
            self._say(self._prefix + _trial_line(trial, self.study))
        return bool(ended or paused)


def follow(engine: sa.Engine, study: Study, working: Callable[[], bool]) -> None:
    """Shows trials as they end until `working()` is false. In a terminal with a progress bar; in a log with the running
    trials now and then.
    """
    out = console(stderr=True)
    say = partial(out.print, soft_wrap=True)
    ended = EndedTrials(engine, study, say)
    reported_at = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        disable=not out.is_terminal,
        transient=True,
    )
    split = None
    troubles: list[str] = []
    with bar:
        task = bar.add_task("trials", total=study.budget)
        while True:
            still_working = working()  # asked before reading the database, so that the last trials are not missed
            if split is None and (split := outlast(partial(read_split, engine, study), say)) is not None:
                say(f"images: {split_line(split)}")
                for line in warn_of_few_images(study, split.tuning):
                    say(line)
            if ended.report_new():
                reported_at = time.monotonic()
            counts, running = outlast(partial(progress, engine, study), say)
            troubles, before = troubles_of(running), troubles
            for trouble in set(troubles).difference(before):
                say(trouble)
            line = _running_line(running, study)
            bar.update(task, completed=counts.finished, description=line)
            if not out.is_terminal and time.monotonic() - reported_at > QUIET_SECS and still_working:
                reported_at = time.monotonic()
                doing = line if running else "workers are starting"
                say(f"{counts.finished} of {study.budget} trials finished; {doing}")
            if not still_working:
                return
            time.sleep(POLL_SECS)


def _trial_line(trial: TrialResult, study: Study) -> str:
    name = "baseline" if trial.baseline else f"trial {trial.number}"
    if (confirms := trial.attributes.get(CONFIRMS_KEY)) is not None:
        name = run_name(confirms)
    if trial.interruption:
        when = f" after {_last_step(trial, study)}" if trial.reports else ""
        return f"{name} interrupted{when}: {trial.interruption}; requeued"
    if trial.state == "fail":
        reason = reason_in(trial.failure or "no reason was recorded")
        return f"{name} failed: {reason}; requeued"
    stopped = "pruned" if trial.state == "pruned" else "paused"
    ended = "complete" if trial.state == "complete" else f"{stopped} after {_last_step(trial, study)}"
    measured = "".join(f", {key} {shown_part(value, study)}" for key, value in trial.parts.items())
    searched = () if confirms else study.spec.search.searched
    params = ", ".join(f"{key} {shown(trial.params[key])}" for key in searched if key in trial.params)
    return f"{name} {ended}: score {shown_score(trial.score)}{measured}{f' ({params})' if params else ''}"


def _last_step(trial: TrialResult, study: Study) -> str:
    return f"{study.spec.step_word} {len(trial.reports)}"


def _running_line(running: Sequence[RunningTrial], study: Study) -> str:
    word, steps = study.spec.step_word, study.spec.steps
    doing = [f"{trial.number} ({word} {min(trial.step + 1, steps)}/{steps})" for trial in running]
    return f"{'trial' if len(doing) == 1 else 'trials'} {', '.join(doing)}" if doing else "trials"


class StepProgress:
    """Shows the progress of long preparations: a bar in a terminal, a line at the end of each in a log."""

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._bar = Progress(console=self._out, disable=not self._out.is_terminal, transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        if done == total and not self._out.is_terminal:
            self._out.print(f"{what}: {total:,} done")
        self._bar.update(self._tasks[what], completed=done)
