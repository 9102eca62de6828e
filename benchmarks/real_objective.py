"""The objective `robust-accuracy` of a study file, set up as a worker does."""

from pathlib import Path

from hpo.artifacts import Artifacts
from hpo.doors.objective import Context
from hpo.objectives.robust_accuracy import RobustAccuracy
from hpo.search.checkpoints import StudyFolder
from hpo.study_file.spec import Spec


def robust_accuracy(spec: Spec, threads: int | None, folder: Path) -> RobustAccuracy:
    """folder: the artifact store."""
    store = StudyFolder(Artifacts(str(folder)), spec.folder_name)
    return RobustAccuracy(spec.objective, Context(spec.seed, threads, spec, store, print))
