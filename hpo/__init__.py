"""hpo: finds image classifiers that stay accurate when their input is perturbed.

    import hpo
    hpo.run("studies/quickstart.toml", workers=2)
    hpo.best("quickstart").params
    hpo.load_results("quickstart", where="clean_accuracy > 0.95").to_pandas()

submit: add a study to the database. run: submit it and run it here until its budget is used up.
best, top, load_results, pareto, history: results, as TrialResult records; a Results list has to_pandas().
confirm: train the best trials again on fresh seeds, score them on the locked test images, and say what holds.
report: write a page that says what was found. load_model: a network that `hpo export` wrote.
load_spec, Spec: a validated study file.
perturb: apply the perturbations that studies score with.
Perturbation, AdaptivePerturbation, Network, Objective: base classes for your own; Section for settings, and Trial,
Measurement, Outcome, BelowBaseline and Context for objectives.
uniform, normal: random numbers for perturbations. derive_keys: independent keys for further draws.
HpoError and its subclasses: errors that you can fix, each with a message of one line.

`storage` is a database URL; None means HPO_STORAGE if it is set, else sqlite:///hpo.db. Only `run`, `perturb` and the
random numbers load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
PROTOCOL = 7
"""Increased whenever workers of older versions can no longer share a study with this one, because what is stored or how
trials train has changed.
"""
OLDEST_PROTOCOL = 5
"""Studies from this protocol on can be continued."""

if TYPE_CHECKING:
    from hpo.api import (
        Results,
        best,
        confirm,
        history,
        load_model,
        load_results,
        pareto,
        perturb,
        report,
        run,
        submit,
        top,
    )
    from hpo.doors.network import Network
    from hpo.doors.objective import BelowBaseline, Context, Measurement, Objective, Outcome, Trial
    from hpo.doors.perturbation import AdaptivePerturbation, Perturbation
    from hpo.doors.section import Section
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
    "AdaptivePerturbation",
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
    "Outcome",
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
    "confirm",
    "derive_keys",
    "history",
    "load_model",
    "load_results",
    "load_spec",
    "normal",
    "pareto",
    "perturb",
    "report",
    "run",
    "submit",
    "top",
    "uniform",
]
_ELSEWHERE = {
    "Section": "hpo.doors.parameters",
    **dict.fromkeys(
        ("BelowBaseline", "Context", "Measurement", "Objective", "Outcome", "Trial"), "hpo.doors.objective"
    ),
    "TrialResult": "hpo.trial_result",
    "Spec": "hpo.study_file.spec",
    "load_spec": "hpo.study_file.reading",
    "Network": "hpo.doors.network",
    "AdaptivePerturbation": "hpo.doors.perturbation",
    "Perturbation": "hpo.doors.perturbation",
    **dict.fromkeys(("derive_keys", "normal", "uniform"), "hpo.vision.random_bits"),
}


def __getattr__(name: str) -> Any:
    """Loads names when they are first used, which keeps `hpo --help` fast."""
    if name not in __all__:
        raise AttributeError(f"module 'hpo' has no attribute '{name}'")
    module = _ELSEWHERE.get(name) or ("hpo.errors" if name.endswith("Error") else "hpo.api")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    """Includes names that are not loaded yet, for `help` and completion."""
    return sorted({*globals(), *__all__})
