"""What is needed to reproduce a trial: versions, commit, seed, machine, data."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hpo
from hpo.doors.objective import OBJECTIVES
from hpo.study_file.spec import Spec

GIT_SECS = 20
"""A checkout on a network drive may take seconds; one that does not answer must not block training."""
PACKAGES = ("torch", "torchvision", "optuna", "numpy")


def made_by(spec: Spec, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The provenance of trials run by this process, in JSON types."""
    return {**_versions(spec.objective_name), "seed": spec.seed, "host": socket.gethostname(), **fingerprints}


@cache
def _versions(objective: str) -> dict[str, Any]:
    package = OBJECTIVES.package_of(objective)
    return {
        "hpo": hpo.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        **({"objective": package} if package else {}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of hpo's own checkout, with '+' if there are changes; None if installed from a package, or if git is
    missing or does not answer.
    """
    source = Path(__file__).parents[1]
    if not (source.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],  # noqa: S607
            cwd=source,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=GIT_SECS,
            env=os.environ | {"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
