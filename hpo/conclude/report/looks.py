"""What the baseline and the best network make of real images: answers, features and mistakes. Needs images and weights.

The networks are those of the first fresh seed of a confirmation, on test images; without one those of the search's own
trials, on tuning images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from hpo.artifacts import Artifacts
from hpo.conclude.report.facts import Facts
from hpo.conclude.report.features import FeatureMap, as_png, feature_maps, features_moved
from hpo.doors.perturbation import AdaptivePerturbation, Perturbation
from hpo.errors import HpoError
from hpo.search.kept_files import read_weights
from hpo.study_file.images import ImageSpec
from hpo.trial_result import CLEAN
from hpo.vision.attacks import attacked
from hpo.vision.classifier import Classifier, build_network
from hpo.vision.data.images import ImageSet, Split, load_images
from hpo.vision.device import Compute, choose_compute
from hpo.vision.outcomes import adversarial_members
from hpo.vision.scoring import in_8_bits, perturb
from hpo.vision.training.checkpoints import weights_from_bytes

SHOWN = 6  # images in the grid
ASKED = 2500
"""Images that the confusions and the movement of features are counted on, at most."""
MANY = 0.015
"""A perturbation that touches a larger share of the pixels is not marked."""
REPLICATE = 2**20
"""Of what is drawn for an image, where there is no confirmation: none that a trial was scored with."""


@dataclass(frozen=True)
class Answer:
    """What a network says of an image. confidence: its softmax, 0 to 1."""

    label: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Cell:
    """An image as a data URL, with the answers of baseline and best, and where pixels were changed, in shares of its
    width and height; empty where nearly all were.
    """

    image: str
    baseline: Answer
    best: Answer
    touched: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """The same images under one condition."""

    condition: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class PerClass:
    """How many of its images are right."""

    name: str
    images: int
    baseline: int
    best: int

    @property
    def gain(self) -> int:
        return self.best - self.baseline


@dataclass(frozen=True)
class Confusion:
    """How often images of a class are taken for another."""

    of: str
    taken_for: str
    baseline: int
    best: int


@dataclass(frozen=True)
class Looks:
    """what: which images and networks; asked: how many images; feature_maps: by network; moved: by network, how far
    features move by depth, the mean over images; perturbed: the condition that features, classes and confusions are
    shown of.
    """

    what: str
    asked: int
    perturbed: str
    grid: Sequence[Row]
    feature_maps: Mapping[str, Sequence[FeatureMap]]
    moved: Mapping[str, Sequence[float]]
    classes: Mapping[str, Sequence[PerClass]]
    confusions: Sequence[Confusion]
    worst: Sequence[tuple[str, Cell]]


def look(engine: sa.Engine, facts: Facts, artifacts: Artifacts) -> Looks:
    """Raises HpoError, if images or weights are not at hand, and OSError."""
    spec = facts.study.spec
    if not isinstance(spec, ImageSpec):
        raise HpoError("only studies of images have images")
    images = load_images(spec.data, spec.model.input_size, spec.split_seed)
    compute = choose_compute(None, spec.model.input_size)
    networks = _networks(engine, facts, artifacts, spec, images, compute)
    confirmed = facts.confirmed is not None
    split = images.test if confirmed else images.tuning
    what = (
        f"the networks of fresh seed {_seed(facts)} alone, on locked test images"
        if confirmed
        else "the networks of the search itself, on the tuning images that it chose by"
    )
    main = max(_natural(spec) or spec.objective.perturbations, key=lambda each: each.weight)
    asked, replicate = split.evenly_spread(ASKED), _seed(facts) if confirmed else REPLICATE
    views = {CLEAN: _pixels(asked), main.name: _perturbed(main, networks["baseline"], asked, compute, replicate)}
    logits = {
        name: {who: _logits(network, pixels, compute) for who, network in networks.items()}
        for name, pixels in views.items()
    }
    return Looks(
        what,
        len(asked),
        main.name,
        _grid(spec, networks, split, images.names, compute),
        {who: feature_maps(network, views, compute) for who, network in networks.items()},
        {who: features_moved(network, views, compute) for who, network in networks.items()},
        {name: _classes(each, asked, images.names) for name, each in logits.items()},
        _confusions(logits[main.name], asked, images.names),
        _worst(logits[main.name], views[main.name], asked, images.names),
    )


def _networks(
    engine: sa.Engine, facts: Facts, artifacts: Artifacts, spec: ImageSpec, images: ImageSet, compute: Compute
) -> dict[str, Classifier]:
    found = {}
    for who, (study, number) in facts.weights_kept_by.items():
        weights = weights_from_bytes(read_weights(engine, study, number, artifacts))
        network = build_network(spec.model.name, len(images.classes), weights, spec.model.input_size, 0, seed=0)
        found[who] = network.to(compute.device).eval()
    return found


def _seed(facts: Facts) -> int:
    """The first fresh one, by which images were perturbed too."""
    return facts.confirmed.results[0].seeds[0] if facts.confirmed else facts.study.spec.seed


def _natural(spec: ImageSpec) -> list[Perturbation]:
    return [each for each in spec.objective.perturbations if not isinstance(each, AdaptivePerturbation)]


def _pixels(split: Split) -> Tensor:
    """uint8 (n, 3, height, width)."""
    return torch.from_numpy(split.pixels[split.rows]).permute(0, 3, 1, 2)


def _perturbed(
    perturbation: Perturbation, network: Classifier, split: Split, compute: Compute, replicate: int = REPLICATE
) -> Tensor:
    """uint8 (n, 3, height, width); what is chosen by gradient, against this network."""
    if isinstance(perturbation, AdaptivePerturbation):
        made = attacked(perturbation, network, split, compute, replicate, lambda text: None, 1)
        return made.permute(0, 3, 1, 2)
    keys = torch.from_numpy(split.keys)
    severity = perturbation.scored_severity
    parts = [
        in_8_bits(perturb(perturbation, perturbation.name, pixels.float().div(255), some, severity, replicate))
        for pixels, some in zip(_pixels(split).split(250), keys.split(250), strict=True)
    ]
    return torch.cat(parts)


@torch.no_grad()
def _logits(network: Classifier, pixels: Tensor, compute: Compute) -> Tensor:
    """float32 (n, classes), on the CPU."""
    return torch.cat([network(some.to(compute.device)).float().cpu() for some in pixels.split(250)])


def _grid(
    spec: ImageSpec, networks: Mapping[str, Classifier], split: Split, classes: Sequence[str], compute: Compute
) -> list[Row]:
    """Images that the baseline gets right, under every family."""
    some = split.evenly_spread(min(len(split), 40 * SHOWN))
    right = _logits(networks["baseline"], _pixels(some), compute).argmax(1).numpy() == some.labels
    candidates = np.flatnonzero(right) if right.sum() >= SHOWN else np.arange(len(some))
    chosen = _at(some, candidates[np.linspace(0, len(candidates) - 1, min(SHOWN, len(candidates))).astype(int)])
    clean = _pixels(chosen)
    rows = [_row(CLEAN, clean, clean, networks, chosen, classes, compute)]
    for perturbation in _natural(spec):
        made = _perturbed(perturbation, networks["baseline"], chosen, compute)
        name = f"{perturbation.name} {perturbation.setting:g}"
        rows.append(_row(name, made, clean, networks, chosen, classes, compute))
    for adaptive in adversarial_members(spec.objective.perturbations):
        made = _perturbed(adaptive, networks["baseline"], chosen, compute)
        name = f"{adaptive.name} {adaptive.setting:g}, against this baseline"
        rows.append(_row(name, made, clean, networks, chosen, classes, compute))
    return rows


def _at(split: Split, positions: NDArray[np.int64]) -> Split:
    return Split(split.pixels, split.rows[positions], split.labels[positions], split.keys[positions])


def _row(
    condition: str,
    pixels: Tensor,
    clean: Tensor,
    networks: Mapping[str, Classifier],
    split: Split,
    classes: Sequence[str],
    compute: Compute,
) -> Row:
    logits = {who: _logits(network, pixels, compute) for who, network in networks.items()}
    return Row(condition, [_cell(pixels[i], clean[i], logits, i, split, classes) for i in range(len(pixels))])


def _cell(
    pixels: Tensor, clean: Tensor | None, logits: Mapping[str, Tensor], i: int, split: Split, classes: Sequence[str]
) -> Cell:
    touched: list[tuple[float, float]] = []
    if clean is not None:
        height, width = pixels.shape[-2:]
        where = (pixels != clean).any(0).nonzero().tolist()
        if len(where) <= MANY * height * width:
            touched = [((x + 0.5) / width, (y + 0.5) / height) for y, x in where]
    answers = {who: _answer(each[i], int(split.labels[i]), classes) for who, each in logits.items()}
    return Cell(as_url(pixels), answers["baseline"], answers["best"], touched)


def _answer(logits: Tensor, label: int, classes: Sequence[str]) -> Answer:
    confidence, guess = logits.softmax(0).max(0)
    return Answer(classes[int(guess)], float(confidence), int(guess) == label)


def as_url(pixels: Tensor) -> str:
    """A PNG of uint8 (3, height, width)."""
    return as_png(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))


def _classes(logits: Mapping[str, Tensor], split: Split, classes: Sequence[str]) -> list[PerClass]:
    labels = torch.from_numpy(split.labels)
    right = {who: (each.argmax(1) == labels).numpy() for who, each in logits.items()}
    return [
        PerClass(
            name,
            int((split.labels == label).sum()),
            int(right["baseline"][split.labels == label].sum()),
            int(right["best"][split.labels == label].sum()),
        )
        for label, name in enumerate(classes)
        if (split.labels == label).any()
    ]


def _confusions(logits: Mapping[str, Tensor], split: Split, classes: Sequence[str]) -> list[Confusion]:
    """Those that grew and shrank most."""
    count = len(classes)
    tables = {
        who: np.bincount(split.labels * count + each.argmax(1).numpy(), minlength=count**2).reshape(count, count)
        for who, each in logits.items()
    }
    change = tables["best"] - tables["baseline"]
    np.fill_diagonal(change, 0)
    order = np.argsort(change, axis=None)
    picked = [*order[:3], *order[-3:][::-1]]
    pairs = [(int(at) // count, int(at) % count) for at in picked if change.flat[at]]
    return [
        Confusion(classes[of], classes[into], int(tables["baseline"][of, into]), int(tables["best"][of, into]))
        for of, into in pairs
    ]


def _worst(
    logits: Mapping[str, Tensor], pixels: Tensor, split: Split, classes: Sequence[str]
) -> list[tuple[str, Cell]]:
    """The images that the best network is most certainly wrong about, with their class."""
    labels = torch.from_numpy(split.labels)
    loss = nn.functional.cross_entropy(logits["best"], labels, reduction="none")
    return [
        (classes[int(labels[i])], _cell(pixels[i], None, logits, i, split, classes))
        for i in loss.topk(min(SHOWN, len(loss))).indices.tolist()
    ]
