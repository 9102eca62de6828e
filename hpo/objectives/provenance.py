"""What it takes to make the same trial again: versions, commit, seed, machine, data."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

import hpo

GIT_SECS = 20
"""A checkout on a network drive may take seconds; one that does not answer keeps nobody from training."""


def made_by(seed: int, device: str, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """As this process makes trials, in JSON's types."""
    return {
        "hpo": hpo.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "optuna": optuna.__version__,
        "numpy": np.__version__,
        "seed": seed,
        "host": socket.gethostname(),
        "device": device,
        "threads": torch.get_num_threads(),
        **fingerprints,
    }


def _commit() -> str | None:
    """The commit of hpo's own checkout, with '+' if it was changed since; None when installed from a package, and where
    git is missing or does not answer.
    """
    source = Path(__file__).parent
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
