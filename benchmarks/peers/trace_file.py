"""What peers keep of each report, a JSON line each, for time_to_target.py."""

import json
import time
from pathlib import Path


def note(trace: Path, trial: str | int, epoch: int, measured: dict[str, float], config: dict) -> None:
    with trace.open("a") as stream:  # a line is one write, so that two trials at once do not mix theirs
        report = {"time": time.time(), "trial": trial, "epoch": epoch, **measured, "params": config}
        stream.write(json.dumps(report) + "\n")
