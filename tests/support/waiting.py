"""The objective `waiting` of an installed package, for tests of workers' lives: without PyTorch they start in a second.
The fixture `waiting` installs it.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import hpo


class Waiting(hpo.Objective):
    """A step takes a tenth of a second, a trial as many MiB of memory as its parameter `mib` says."""

    def run(self, trial: hpo.Trial) -> Iterator[hpo.Measurement]:
        held = b"x" * (int(trial.params["mib"]) * 2**20)
        for step in range(1, trial.steps + 1):
            time.sleep(0.1)
            yield hpo.Measurement(step=step, score=step / trial.steps, parts={"held": float(bool(held))})


def write_waiting_study(folder: Path, budget: int, steps: int, **mib: object) -> str:
    """A study file; its path. mib: what is searched."""
    import tomli_w

    file = folder / "study.toml"
    searched = mib or {"low": 1, "high": 9, "default": 1}
    document = {
        "name": "study",
        "budget": budget,
        "objective": {"name": "waiting", "steps": steps},
        "search": {"mib": searched},
        "sampler": {"name": "grid" if "choices" in searched else "random"},
        "pruner": {"name": "none"},
    }
    file.write_text(tomli_w.dumps(document), encoding="utf-8")
    return str(file)
