"""hpo: finds image classifiers that stay right when their input is perturbed.

From Python: `hpo.submit`, `hpo.run`, `hpo.best`, `hpo.top`, `hpo.load_results` and the others of `hpo.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
PROTOCOL = 5
"""Raised when workers of an older version may not share a study with this one: what is stored, or how trials train."""

if TYPE_CHECKING:
    from hpo.api import Results, best, history, load_results, pareto, perturb, run, submit, top
    from hpo.errors import HpoError
    from hpo.search.queries import TrialResult
    from hpo.spec import Spec, load_spec

__all__ = [
    "HpoError",
    "Results",
    "Spec",
    "TrialResult",
    "best",
    "history",
    "load_results",
    "load_spec",
    "pareto",
    "perturb",
    "run",
    "submit",
    "top",
]


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for, so that `hpo --help` need not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'hpo' has no attribute '{name}'")
    return getattr(import_module("hpo.api"), name)
