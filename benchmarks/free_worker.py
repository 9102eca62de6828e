"""A worker with an objective that costs nothing, handed in as the real one is; it can kill itself at a chosen point.

Environment: HPO_STORAGE; EPOCH_SECS, what an epoch takes; HEARTBEAT_SECS and GRACE_SECS; FOREVER, if it is to wait for
new studies; KILLS, a folder of tickets for kills and the number of them, as `folder:60`: while there are tickets left,
half of the workers kill themselves with SIGKILL before or after some SQL statement, commit or rollback of one of
FUNCTIONS.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from free_objective import FreeObjective

from hpo.doors.objective import Measurement, Trial
from hpo.errors import HpoError
from hpo.search.sql import heartbeats
from hpo.search.sql.storage import open_engine
from hpo.search.sql.url import parse_url
from hpo.search.worker import work
from hpo.stopping import Stopped, stop_on_signals, stop_with_parent
from hpo.workers.launcher import worker_name

FUNCTIONS = (
    "claim",
    "record_params",
    "record_step",
    "finish",
    "reap",
    "give_back",
    "beat",
    "pause",
    "promote",
    "prune_paused",
)


class TimedObjective(FreeObjective):
    """Costs time only."""

    def run(self, trial: Trial) -> Iterator[Measurement]:
        for measurement in super().run(trial):
            time.sleep(float(os.environ.get("EPOCH_SECS", "0")))
            yield measurement


def take_ticket(folder: str, tickets: str) -> bool:
    """Whether one more kill is allowed: one file a kill, made by whoever dies or kills."""
    for number in range(int(tickets)):
        try:
            os.close(os.open(Path(folder) / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False


def die_at(engine: sa.Engine, function: str, point: int, kills: str) -> None:
    """Kills this process at the given point, counted from 1, of those that lie in `function`."""
    reached = 0

    def count(*_: object) -> None:
        nonlocal reached
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != function:
            frame = frame.f_back
        if frame is not None and "hpo/search" in frame.f_code.co_filename:
            reached += 1
            if reached == point and take_ticket(*kills.rsplit(":", 1)):
                print(f"killed in {function}, at point {point}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    for event in ("before_cursor_execute", "after_cursor_execute", "commit", "rollback", "checkin"):
        sa.event.listen(engine, event, count)


def main() -> None:
    stop_on_signals(exit_for_certain=True)
    stop_with_parent()
    heartbeats.HEARTBEAT_INTERVAL_SECS = float(os.environ.get("HEARTBEAT_SECS", "10"))
    heartbeats.GRACE_PERIOD_SECS = float(os.environ.get("GRACE_SECS", "60"))
    try:
        engine = open_engine(parse_url(os.environ["HPO_STORAGE"]))
    except HpoError as error:  # as `hpo worker` says it
        print(f"hpo: {error}")
        sys.exit(error.exit_code)
    if (kills := os.environ.get("KILLS")) and random.random() < 0.5:
        die_at(engine, random.choice(FUNCTIONS), random.randint(1, 16), kills)
    try:
        forever = bool(os.environ.get("FOREVER"))
        say = partial(print, flush=True)
        studies = [name for name in sys.argv[1:] if name != "--"]
        work(engine, studies, TimedObjective, worker_name(os.getpid()), say, forever)
    except Stopped:
        print("stopped")


if __name__ == "__main__":
    main()
