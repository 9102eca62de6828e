"""The command `hpo` as tests run it: in the foreground, and started in the background."""

import subprocess
from collections.abc import Callable

Hpo = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

ONE_THREAD = {"HPO_THREADS": "1"}
"""For workers of their own: as many tests run at once as there are cores."""
