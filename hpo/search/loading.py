"""Sets up a study's objective in this process."""

import traceback
from collections.abc import Callable

from hpo.doors.objective import OBJECTIVES, Context, Objective, Store
from hpo.doors.registry import code_of
from hpo.errors import HpoError, InputError
from hpo.study_file.custom import CustomSpec, settings_of
from hpo.study_file.spec import Spec


def load_objective(spec: Spec, store: Store, threads: int | None, say: Callable[[str], None]) -> Objective:
    """Looks up the objective among hpo's own and those of installed packages, and sets it up. Raises InputError if
    that fails on this machine.
    """
    name = spec.objective_name
    try:
        kind = OBJECTIVES.find(name)
        settings = settings_of(spec, kind) if isinstance(spec, CustomSpec) else spec.objective
        return kind(settings, Context(spec.seed, threads, spec, store, say))
    except HpoError:
        raise
    except Exception as error:  # raised by the package's own code; must not count as a failed trial
        if not isinstance(error, ImportError):
            say(traceback.format_exc())
        reason = error if isinstance(error, ImportError) else repr(error)
        raise InputError(f"objective '{name}' does not work on this machine: {reason}") from error


def fingerprints_of(spec: Spec, objective: Objective) -> dict[str, str]:
    """What must be equal on all workers of the study; the code of an installed objective too."""
    code = code_of(type(objective)) if OBJECTIVES.package_of(spec.objective_name) else None
    return {**objective.fingerprints(), **({f"code of {spec.objective_name}": code} if code else {})}
