"""hpo: finds image classifiers that stay right when their input is perturbed.

    import hpo
    hpo.run("studies/quickstart.toml", workers=2)
    hpo.best("quickstart").params
    hpo.load_results("quickstart", where="clean_accuracy > 0.95").to_pandas()

submit, run: put a study into the database; and work on it here until its budget is used.
best, top, load_results, pareto, history: what was found, as TrialResult records; Results has to_pandas().
load_spec, Spec: a study file, checked.
perturb: the perturbations that studies score on. Perturbation, Network, Objective: base classes for your own, with
Section (settings), Trial, Measurement, BelowBaseline and Context; uniform, normal: the random numbers that a
perturbation draws, derive_keys: keys for draws of another purpose.
HpoError and the classes below it: what can go wrong that you can mend, each in one line.

`storage` is a database URL; if it is None, HPO_STORAGE, or else sqlite:///hpo.db. Only `run`, `perturb` and the
random numbers load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
PROTOCOL = 6
"""Raised when workers of an older version may not share a study with this one: what is stored, or how trials train."""
OLDEST_PROTOCOL = 5
"""Of studies that this version goes on with."""

if TYPE_CHECKING:
    from hpo.api import Results, best, history, load_results, pareto, perturb, run, submit, top
    from hpo.doors.network import Network
    from hpo.doors.objective import BelowBaseline, Context, Measurement, Objective, Trial
    from hpo.doors.parameters import Section
    from hpo.doors.perturbation import Perturbation
    from hpo.errors import (
        DataError,
        HpoError,
        InputError,
        MachineError,
        NothingCompleteError,
        SpecError,
        StorageError,
        StudyError,
        WeightsError,
        WorkerError,
    )
    from hpo.study_file.reading import load_spec
    from hpo.study_file.spec import Spec
    from hpo.trial_result import TrialResult
    from hpo.vision.random_bits import derive_keys, normal, uniform

__all__ = [
    "BelowBaseline",
    "Context",
    "DataError",
    "HpoError",
    "InputError",
    "MachineError",
    "Measurement",
    "Network",
    "NothingCompleteError",
    "Objective",
    "Perturbation",
    "Results",
    "Section",
    "Spec",
    "SpecError",
    "StorageError",
    "StudyError",
    "Trial",
    "TrialResult",
    "WeightsError",
    "WorkerError",
    "best",
    "derive_keys",
    "history",
    "load_results",
    "load_spec",
    "normal",
    "pareto",
    "perturb",
    "run",
    "submit",
    "top",
    "uniform",
]
_ELSEWHERE = {
    "Section": "hpo.doors.parameters",
    **dict.fromkeys(("BelowBaseline", "Context", "Measurement", "Objective", "Trial"), "hpo.doors.objective"),
    "TrialResult": "hpo.trial_result",
    "Spec": "hpo.study_file.spec",
    "load_spec": "hpo.study_file.reading",
    "Network": "hpo.doors.network",
    "Perturbation": "hpo.doors.perturbation",
    **dict.fromkeys(("derive_keys", "normal", "uniform"), "hpo.vision.random_bits"),
}


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for, so that `hpo --help` need not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'hpo' has no attribute '{name}'")
    module = _ELSEWHERE.get(name) or ("hpo.errors" if name.endswith("Error") else "hpo.api")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    """With what is not loaded yet, for `help` and completion."""
    return sorted({*globals(), *__all__})
