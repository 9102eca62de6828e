"""The objective as workers hold it: PyTorch takes seconds to load, and a trial's parameters can be drawn without it."""

from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safetensors import deserialize

from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Trial
from hpo.errors import InputError
from hpo.search.garbage import collecting_rarely
from hpo.search.sql.attributes import ARTIFACTS_KEY, SKIPPED_KEY, SPLIT_KEY
from hpo.search.study_files import location_in_full
from hpo.study_file.spec import ModelSpec, Spec
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.weights_file import digest, weights_file

if TYPE_CHECKING:
    from hpo.objectives.robust_accuracy import RobustAccuracy


class LazyObjective:
    """A study's RobustAccuracy, made when it is first asked to check or to run.

    What must be the same for all workers is looked at here, so that whatever is wrong with images, weights or the
    artifact store shows before a trial is claimed. Raises DataError, WeightsError, InputError.
    """

    def __init__(self, spec: Spec, threads: int | None, artifacts: Artifacts) -> None:
        artifacts.check()
        for perturbation in spec.objective.perturbations:
            _ = perturbation.scored_severity  # raises InputError if it is not installed here
        self._spec = spec
        self._threads = threads
        self._artifacts = artifacts
        images = load_images(spec.data, spec.model.input_size, spec.seed)
        self.fingerprints = {"images": images.fingerprint, "weights": _fingerprint(spec.model)}
        self.about = about(images, artifacts)

    def check(self) -> None:
        """Raises WeightsError if the weights are not this network's."""
        self._objective.check()

    def run(self, trial: Trial) -> Generator[Measurement]:
        """One measurement an epoch. Raises InputError if PyTorch does not work here."""
        return self._objective.run(trial)

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes the checkpoints of these trials."""
        if numbers:
            self._objective.discard(numbers)

    @cached_property
    def _objective(self) -> "RobustAccuracy":
        with collecting_rarely():
            try:
                from hpo.objectives.robust_accuracy import RobustAccuracy

                objective = RobustAccuracy(self._spec, self._threads, self._artifacts)
            except (ImportError, OSError, RuntimeError) as error:  # of this machine: no trial is to count as failed
                raise InputError(f"PyTorch does not work on this machine: {error}") from error
        changed = [name for name, known in self.fingerprints.items() if objective.fingerprints[name] != known]
        if changed:
            names = " and ".join(changed)
            raise InputError(
                f"study '{self._spec.name}': its {names} were changed while this worker ran; start it again"
            )
        return objective


def about(images: ImageSet, artifacts: Artifacts) -> dict[str, Any]:
    """What is kept with the study for those who look at it."""
    split = {"train": len(images.train), "tuning": len(images.tuning), "test": len(images.test)}
    kept: dict[str, Any] = {SPLIT_KEY: split | {"classes": len(images.classes)}}
    kept[ARTIFACTS_KEY] = location_in_full(artifacts.location)
    return kept | ({SKIPPED_KEY: list(images.skipped)} if images.skipped else {})


def _fingerprint(model: ModelSpec) -> str:
    """As `classifier.fingerprint`; without PyTorch where the file's format allows it."""
    path = weights_file(model.weights)
    if model.weights == "none":
        return digest({})
    if path is not None and path.suffix == ".safetensors":
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        return digest({name: tensor["data"] for name, tensor in tensors})
    from hpo.vision import classifier

    return classifier.fingerprint(classifier.read_weights(model.name, model.weights))
