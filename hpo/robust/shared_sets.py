"""The images of a study that are chosen by gradient against its baseline: made once, by whoever needs them first."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from hpo.doors.objective import Store
from hpo.search.provenance import made_by
from hpo.study_file.images import ImageSpec, Which
from hpo.study_file.perturbations import against
from hpo.vision.adversarial_sets import AgainstBaseline, AgainstItself
from hpo.vision.classifier import Classifier, Weights, fingerprint
from hpo.vision.data.disk import data_root
from hpo.vision.data.images import ImageSet
from hpo.vision.device import Compute
from hpo.vision.training.checkpoints import baseline_weights


def lock_file(spec: ImageSpec, what: str) -> Path:
    """Of what one process on this machine makes while the others wait."""
    return data_root(spec.data) / "images" / f".{what}.lock"


class SharedSets:
    """As a worker reads them, or makes those that are not there yet."""

    def __init__(
        self,
        spec: ImageSpec,
        images: ImageSet,
        compute: Compute,
        store: Store,
        fingerprints: Mapping[str, str],
        network: Callable[[Weights], Classifier],
        say: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.read = cache(self._read)  # cached methods would keep this object
        self.digests = cache(self._digests)
        self._made = AgainstBaseline(
            store,
            images,
            compute,
            spec.identity() | dict(fingerprints),
            made_by(spec, fingerprints) | {"device": compute.description},
            partial(baseline_weights, store),
            network,
            lock_file(spec, "adversarial"),
            say,
        )

    def _read(self, which: Which) -> dict[str, Tensor]:
        """By perturbation: uint8 (n, height, width, 3)."""
        trained_on = which in ("train", "learned")
        families = self.spec.training_perturbations if trained_on else self.spec.objective.perturbations
        return {each.name: self._made(each, which) for each in against("baseline", families)}

    def _digests(self, which: Which) -> dict[str, str]:
        return {f"images of {name}": fingerprint({"pixels": made}) for name, made in self.read(which).items()}

    def leave(self, made: Mapping[str, AgainstItself]) -> None:
        """What the baseline leaves to other trials, so that all have the same. made: of the tuning images."""
        for perturbation in against("baseline", self.spec.objective.perturbations):
            self._made(perturbation, "tuning", made[perturbation.name].pixels)
        self.read("train")
