"""Images that are chosen by gradient: against a study's baseline, made once and shared by all workers, or against the
network that is scored.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hpo.doors.objective import Store
from hpo.doors.perturbation import AdaptivePerturbation
from hpo.study_file.images import Which, adversarial_set
from hpo.vision.attacks import attacked
from hpo.vision.classifier import Classifier, Weights, fingerprint
from hpo.vision.data.images import ImageSet, Split
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.made_once import made_once
from hpo.vision.scoring import TUNING_REPLICATE, Accuracy, evaluate, evaluation_set

REPLICATES: Mapping[Which, int | str] = {
    "train": "training",
    "learned": "training",
    "tuning": TUNING_REPLICATE,
    "test": "test",
}
"""Of what is drawn for an image."""


@dataclass(frozen=True)
class AgainstBaseline:
    """How images are perturbed against a study's baseline.

    identity: what must be equal for a kept set to be this study's; made_by: the provenance of what is made here;
    weights: reads those of the baseline; network: one with these weights; lock: a file on this machine's disk.
    """

    store: Store
    images: ImageSet
    compute: Compute
    identity: Mapping[str, object]
    made_by: Mapping[str, object]
    weights: Callable[[], Weights]
    network: Callable[[Weights], Classifier]
    lock: Path
    say: Callable[[str], None]

    def __call__(self, perturbation: AdaptivePerturbation, which: Which, made: Tensor | None = None) -> Tensor:
        """These images of the study, perturbed: uint8 (n, height, width, 3). The study's file of them is read, or else
        written. made: the same, if they are there already.
        """
        images: Split = getattr(self.images, which)
        weights = self.weights()
        about = {
            "perturbation": perturbation.model_dump(mode="json"),
            "images": which,
            "baseline": fingerprint(weights),
        }

        def make() -> dict[str, Tensor]:
            if made is not None:
                return {"pixels": made}
            self.say(f"{perturbation.name}: {len(images):,} images ({which}) are made against the baseline")
            replicate = REPLICATES[which]
            network = self.network(weights)
            at_once = self.compute.batches_at_once_alone
            return {"pixels": attacked(perturbation, network, images, self.compute, replicate, self.say, at_once)}

        return made_once(
            self.store,
            adversarial_set(perturbation.name, which),
            json.dumps({**self.identity, **about}, sort_keys=True),
            self.lock,
            make,
            {"made_by": json.dumps(dict(self.made_by))},
        )["pixels"]


@dataclass(frozen=True)
class AgainstItself:
    """Images perturbed against the network that is scored: uint8 (n, height, width, 3)."""

    images: Split
    pixels: Tensor


def against_itself(
    network: Classifier,
    perturbations: Sequence[AdaptivePerturbation],
    images: Split,
    compute: Compute,
    say: Callable[[str], None],
    at_once: int,
) -> dict[str, AgainstItself]:
    """By perturbation. Those against `self` take as many of the images as they say, the others all."""
    made = {}
    for perturbation in perturbations:
        some = images.evenly_spread(perturbation.images) if perturbation.against == "self" else images
        say(f"{perturbation.name}: {len(some):,} images are made against the trial's own network")
        pixels = attacked(perturbation, network, some, compute, TUNING_REPLICATE, say, at_once)
        made[perturbation.name] = AgainstItself(some, pixels)
    return made


def score(
    network: Classifier, made: Mapping[str, AgainstItself], compute: Compute, at_once: int
) -> dict[str, Accuracy]:
    """The network's accuracy on each."""
    scored = Inference(network, compute)
    sets = {name: evaluation_set(of.images, {name: of.pixels}, compute.device, at_once) for name, of in made.items()}
    return {name: accuracy for some in sets.values() for name, accuracy in evaluate(scored, some).items()}
