"""The Python API, available as attributes of `hpo`.

All errors are hpo.HpoError or a subclass, with a message of one line. Queries load neither Optuna nor torch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.doors.perturbation import PERTURBATIONS, AdaptivePerturbation, Perturbation
from hpo.errors import InputError, NothingCompleteError
from hpo.search.sql.queries import all_trials, best_trials, improvements, pareto_front
from hpo.search.sql.storage import create_database, open_engine
from hpo.search.sql.studies import find_studies
from hpo.search.sql.submitting import submit as submit_spec
from hpo.search.sql.url import DEFAULT_STORAGE, parse_url
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec
from hpo.trial_result import TrialResult

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa
    from torch import Tensor

    from hpo.vision.classifier import Classifier


class Results(list[TrialResult]):
    """A list of trials."""

    def to_pandas(self) -> "pd.DataFrame":
        """A row per trial: accuracies, parameters, worker and times. Raises InputError without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise InputError("to_pandas() needs another package: pip install pandas") from None
        return pd.DataFrame([result.as_row() for result in self])


def submit(study: Spec | Path | str, storage: str | None = None, overrides: Sequence[str] = ()) -> str:
    """Adds a study to the database, for workers to run; returns its name. Submitting it again changes nothing.

    study: a spec or the path of a study file; overrides: `key=value`, as for `--set`.
    """
    submitted, _ = submit_spec(create_database(parse_url(_url(storage))), _spec(study, overrides))
    return submitted.name


def run(
    study: Spec | Path | str, storage: str | None = None, workers: int | None = 1, overrides: Sequence[str] = ()
) -> TrialResult:
    """Submits a study and runs it on this machine until its budget is used up; returns the best trial.

    workers: the number of worker processes, or None for as many as this machine has room for, as `--workers auto`.

    Progress goes to stderr, the table of the best trials to stdout. Must be called from the main thread, for Ctrl-C to
    stop the workers.
    """
    from hpo.cli.run_here import run_study

    spec = _spec(study, overrides)
    run_study(spec, _url(storage), workers)
    return best(spec.name, storage)


def confirm(
    study: str,
    top: int | None = None,
    seeds: int | None = None,
    test_sets: Sequence[Path | str] = (),
    *,
    anyway: bool = False,
    storage: str | None = None,
    workers: int | None = 1,
) -> "list[dict[str, Any]]":
    """Trains the baseline, the best trials and their controls again on fresh seeds and scores them on the locked test
    images, as `hpo confirm` does; returns what that prints with --json. top, seeds: as --top and --seeds. Asked again,
    it reads what is there.

    Must be called from the main thread, for Ctrl-C to stop the workers. Raises InputError, WorkerError.
    """
    from hpo.cli.confirm_here import Asked, confirm_study

    for name, value in {"top": top, "seeds": seeds}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    engine = open_engine(parse_url(_url(storage)))
    asked = Asked(top, seeds, [Path(path) for path in test_sets], anyway)
    return confirm_study(engine, find_studies(engine, [study])[0], asked, _url(storage), workers).as_json()


def report(
    study: str,
    output: Path | str | None = None,
    figures: Path | str | None = None,
    *,
    anyway: bool = False,
    storage: str | None = None,
) -> Path:
    """Writes a page that says what was found, as `hpo report` does; returns its path. figures: a new folder for SVG,
    PNG and CSV of each figure. Raises InputError.
    """
    from hpo.cli.report_here import write_report

    engine = open_engine(parse_url(_url(storage)))
    target, folder = (None if path is None else Path(path) for path in (output, figures))
    return write_report(engine, find_studies(engine, [study])[0], target, folder, anyway)


def load_model(folder: Path | str) -> "Classifier":
    """A network that `hpo export` wrote, in eval mode, on the CPU: an nn.Module that takes images, uint8 or floats in
    [0, 1], (n, 3, height, width), at any size, and gives logits, float32 (n, classes), in the order of its `classes`.
    Raises InputError.
    """
    from hpo.conclude.exported.loading import load_model as load

    return load(Path(folder))


def best(study: str, storage: str | None = None) -> TrialResult:
    """The complete trial with the highest score; an infeasible one only if no complete trial is feasible."""
    found = top(study, 1, storage=storage)
    if not found:
        raise NothingCompleteError(study)
    return found[0]


def top(study: str, n: int = 10, where: str = "", sort: str = "score", storage: str | None = None) -> Results:
    """The n best complete trials, best first; `where` and `sort` as in `hpo top`."""
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")
    return Results(best_trials(_open(study, storage), study, n, where, sort))


def load_results(study: str, where: str = "", storage: str | None = None) -> Results:
    """All trials of a study in all states, by number; `where` as in `hpo top`."""
    return Results(all_trials(_open(study, storage), study, where))


def pareto(study: str, storage: str | None = None) -> Results:
    """The Pareto front of the complete trials: clean against perturbed accuracy, or all parts of another score."""
    engine = _open(study, storage)
    return Results(pareto_front(engine, study, find_studies(engine, [study])[0].spec.trade_off))


def history(study: str, storage: str | None = None) -> Results:
    """The feasible complete trials that improved on the best score, in the order in which they ended."""
    return Results(improvements(_open(study, storage), study))


def _open(study: str, storage: str | None) -> "sa.Engine":
    engine = open_engine(parse_url(_url(storage)))
    find_studies(engine, [study])[0].refuse_confirmation()
    return engine


def _url(storage: str | None) -> str:
    return storage or (os.environ.get("HPO_STORAGE") or DEFAULT_STORAGE)


def _spec(study: Spec | Path | str, overrides: Sequence[str]) -> Spec:
    return study if isinstance(study, Spec) else load_spec(study, overrides)


def perturb(
    name: str, images: "Tensor", severity: float | None = None, seed: int = 0, *, level: int | None = None
) -> "Tensor":
    """Perturbs images as studies do to score trials. What is drawn for an image depends on its position and the seed.

    name: one of hpo's perturbations, or one from an installed package; severity: the value of the setting that is its
    severity in a study file, such as `sigma` of `gaussian-noise` or `photons` of `shot-noise`, or 0 for no change where
    larger values are stronger; level: 1 to 5 in its place; images: float32 (n, 3, height, width) in [0, 1], left
    unchanged. Returns a new tensor like it. Raises InputError.
    """
    import torch
    from pydantic import ValidationError

    from hpo.study_file.messages import explain
    from hpo.vision import scoring

    kind = PERTURBATIONS.find(name)
    if issubclass(kind, AdaptivePerturbation):
        raise InputError(f"'{name}' is chosen by gradient, which needs a network; hpo.perturb cannot make it")
    is_batch = isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[1] == 3
    if not is_batch or images.dtype != torch.float32:
        raise InputError("images must be a float32 tensor of shape (n, 3, height, width)")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise InputError("images must have values from 0 to 1; divide 8-bit ones by 255")
    changes_nothing = severity == 0 and kind.scored_severity is Perturbation.scored_severity
    if changes_nothing or not len(images):
        return images.clone()
    given = {key: value for key, value in {kind.severity: severity, "level": level}.items() if value is not None}
    try:
        perturbation = kind.model_validate({"name": name, "weight": 1.0, **given})
    except ValidationError as error:
        raise InputError(f"perturbation '{name}': {explain(error, kind)}") from None
    keys = torch.arange(len(images), device=images.device)
    return scoring.perturb(perturbation, name, images, keys, perturbation.scored_severity, seed)
