"""What a trained network makes of the locked test images, image by image, under every condition that a confirmation
compares: clean, each perturbation at its severity and others, chosen by gradient against the network itself, and sets
from disk.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.doors.objective import Outcome
from hpo.doors.perturbation import PERTURBATIONS, AdaptivePerturbation, Perturbation
from hpo.trial_result import CLEAN
from hpo.vision.attacks import SECONDS_BETWEEN_LINES, attacked
from hpo.vision.classifier import Classifier
from hpo.vision.data.corrupted_sets import find_corrupted_sets
from hpo.vision.data.disk import on_this_machine
from hpo.vision.data.images import ImageSet, Split
from hpo.vision.device import Compute, upload
from hpo.vision.inference import Inference
from hpo.vision.memory import Portions, fitting
from hpo.vision.scoring import in_8_bits, perturb

REFERENCES = ("adversarial-noise", "adversarial-pixels")
"""Chosen against every network itself, whatever a study scores: what its training may only have moved elsewhere."""
TEST_SET_OPTION = "--test-set"


@dataclass(frozen=True)
class Examined:
    """A network, and what it is examined on. size: of the images that it takes; against_baseline: test images chosen by
    gradient against the study's baseline, uint8 (n, height, width, 3), by perturbation; replicate: of what is drawn for
    an image; test_sets: paths; diverged: whether the network's weights may be no numbers.
    """

    network: Classifier
    compute: Compute
    images: ImageSet
    perturbations: Sequence[Perturbation]
    against_baseline: Mapping[str, Tensor]
    replicate: int
    test_sets: Sequence[str]
    diverged: bool
    say: Callable[[str], None]

    @property
    def most_at_once(self) -> int:
        return self.compute.images_scored_at_once(self.network.normalise.size)


def outcomes_of(examined: Examined) -> list[Outcome]:
    """Every condition in turn. Raises DataError for a set from disk, MemoryError if not even few images fit."""
    found: list[Outcome] = []
    told = time.monotonic()
    for outcome in _outcomes(examined):
        found.append(outcome)
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            examined.say(f"test images: {len(found)} conditions are scored, {outcome.condition} the last")
    return found


def _outcomes(examined: Examined) -> Iterator[Outcome]:
    test, classify = examined.images.test, Inference(examined.network, examined.compute)
    natural = [each for each in examined.perturbations if not isinstance(each, AdaptivePerturbation)]
    yield _outcome(CLEAN, None, _right(examined, classify, test))
    for perturbation in examined.perturbations:
        if (made := examined.against_baseline.get(perturbation.name)) is not None:
            right = _right(examined, classify, test, made=made)
            yield _outcome(perturbation.name, perturbation.setting, right)
    for perturbation in natural:
        for variant in perturbation.variants():
            right = _right(examined, classify, test, variant)
            yield _outcome(variant.name, variant.setting, right, main=variant is perturbation)
    for adaptive in adversarial_members(examined.perturbations):
        some = test.evenly_spread(adaptive.images)
        is_scored = any(each.name == adaptive.name and each.against == "self" for each in _adaptive(examined))
        name = adaptive.name if is_scored else f"{adaptive.name} against itself"
        right = np.zeros(len(some), dtype=bool) if examined.diverged else _right_after_attack(examined, adaptive, some)
        yield _outcome(name, adaptive.setting, right, main=is_scored)
    for path in examined.test_sets:
        for found in find_corrupted_sets(on_this_machine(path), examined.images.classes, TEST_SET_OPTION):
            split = found.decode(test.pixels.shape[1])
            digest = hashlib.sha256(split.pixels.tobytes() + split.labels.tobytes()).hexdigest()[:16]
            level = None if found.severity is None else float(found.severity)
            name = f"{Path(path).name.removesuffix('.zip')}: {found.family}"
            yield _outcome(name, level, _right(examined, classify, split), main=False, digest=digest)


def _outcome(
    condition: str, severity: float | None, right: NDArray[np.bool_], main: bool = True, digest: str | None = None
) -> Outcome:
    return Outcome(condition, float(right.mean()), right, severity, main, digest)


def _adaptive(examined: Examined) -> list[AdaptivePerturbation]:
    return [each for each in examined.perturbations if isinstance(each, AdaptivePerturbation)]


def adversarial_members(perturbations: Sequence[Perturbation]) -> list[AdaptivePerturbation]:
    """Those of a study that are chosen by gradient, and REFERENCES; all against the network itself."""
    given = {each.name: each for each in perturbations if isinstance(each, AdaptivePerturbation)}
    for name in REFERENCES:
        if name not in given:
            kind = PERTURBATIONS.find(name)
            member = kind.model_validate({"name": name, "weight": 0.0})
            if isinstance(member, AdaptivePerturbation):
                given[name] = member
    return [each.model_copy(update={"against": "self"}) for each in given.values()]


def _right_after_attack(examined: Examined, adaptive: AdaptivePerturbation, some: Split) -> NDArray[np.bool_]:
    compute, replicate = examined.compute, examined.replicate
    made = attacked(adaptive, examined.network, some, compute, replicate, examined.say, 1)
    return _right(examined, Inference(examined.network, compute), some, made=made)


def _right(
    examined: Examined,
    classify: Callable[[Tensor], Tensor],
    images: Split,
    perturbation: Perturbation | None = None,
    made: Tensor | None = None,
) -> NDArray[np.bool_]:
    """bool (n,). made: the images in other versions, uint8 (n, height, width, 3)."""
    device = examined.compute.device

    def batch_right(rows: NDArray[np.int64]) -> Tensor:
        given = torch.from_numpy(images.pixels[images.rows[rows]]) if made is None else made[rows]
        pixels = upload(given, device).permute(0, 3, 1, 2)
        if perturbation is not None:
            keys = upload(torch.from_numpy(images.keys[rows]), device)
            floats = pixels.float().div(255)
            severity = perturbation.scored_severity
            perturbed = perturb(perturbation, perturbation.name, floats, keys, severity, examined.replicate)
            pixels = in_8_bits(perturbed).contiguous(memory_format=torch.channels_last)
        return classify(pixels).argmax(1) == upload(torch.from_numpy(images.labels[rows]), device)

    def all_right() -> Tensor:
        batches = np.array_split(np.arange(len(images)), range(portions.micro_batch, len(images), portions.micro_batch))
        return torch.cat([batch_right(rows) for rows in batches]).cpu()

    portions = Portions(examined.most_at_once, examined.most_at_once)
    right: NDArray[np.bool_] = fitting(all_right, portions.split_batch).numpy()
    return right
