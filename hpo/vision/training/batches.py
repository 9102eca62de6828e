"""Shuffled batches of the training images as inputs of the trainable part: augmented, and through the frozen part.

On a GPU several batches are prepared at once and handed out as slices, since preparing consists of many small kernels
that are slow to launch. An image's augmentation depends only on seed, epoch and image; the last digit of its features
may depend on how many images pass through the frozen part at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hpo.doors.perturbation import AdaptivePerturbation
from hpo.vision.attacks import Attacked, Targets, attack
from hpo.vision.data.images import Split
from hpo.vision.device import upload
from hpo.vision.inference import Inference
from hpo.vision.memory import Portions, fitting
from hpo.vision.training.augmentation import Augmentation, Chosen

Batch = tuple[Tensor, Tensor]
"""Inputs of the trainable part, and int64 labels (n,). Inputs of n images, or of these and then of their n twins."""
MAX_SHARE_OF_GPU = 0.25
"""Fraction of a GPU's free memory that the training images may occupy."""


class TrainingImages:
    """The training images: all on the GPU if it has enough memory, otherwise uploaded as they are needed."""

    def __init__(self, train: Split, device: torch.device) -> None:
        self.device = device
        self.keys = torch.from_numpy(train.keys)
        self.labels = torch.from_numpy(train.labels)
        self._train = train
        self._pixels = None
        if self._has_room_for(train.pixels[:1].nbytes * len(train)):
            self._pixels = torch.from_numpy(train.pixels[train.rows]).to(device)
        self._adversarial: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def pixels(self, chosen: Tensor) -> Tensor:
        """uint8 (n, height, width, 3), on the device. chosen: int64 (n,), on the CPU."""
        if self._pixels is not None:
            return self._pixels[upload(chosen, self.device)]
        return upload(torch.from_numpy(self._train.pixels[self._train.rows[chosen.numpy()]]), self.device)

    def add_adversarial(self, made: Mapping[str, Tensor]) -> None:
        """made: by perturbation, the same images perturbed against the study's baseline: uint8, as `pixels`."""
        for name in made.keys() - self._adversarial.keys():
            pixels = made[name]
            self._adversarial[name] = pixels.to(self.device) if self._has_room_for(pixels.nbytes) else pixels

    def adversarial(self, name: str, chosen: Tensor) -> Tensor:
        """As `pixels`, perturbed."""
        pixels = self._adversarial[name]
        return pixels[upload(chosen, self.device)] if pixels.is_cuda else upload(pixels[chosen], self.device)

    def _has_room_for(self, needed: int) -> bool:
        return self.device.type == "cuda" and needed < torch.cuda.mem_get_info(self.device)[0] * MAX_SHARE_OF_GPU


class Batches:
    """The batches of one training. victim: the network that is trained, if images are perturbed against it; twins:
    whether each image is followed by its twin, flipped and cropped as it is, but not perturbed.
    """

    def __init__(
        self,
        images: TrainingImages,
        augmentation: Augmentation,
        frozen_part: Inference,
        seed: int,
        victim: Attacked | None = None,
        twins: bool = False,
    ) -> None:
        self.images = images
        self.augmentation = augmentation
        self.frozen_part = frozen_part
        self.seed = seed
        self.victim = victim
        self.twins = twins

    def of_epoch(self, epoch: int, batch_size: int, portions: Portions) -> Iterator[Batch]:
        """(features, labels) of each batch. A last batch of a single image is dropped: BatchNorm cannot train on it."""
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=shuffle)
        if len(order) > 1 and len(order) % batch_size == 1:
            order = order[:-1]
        while len(order):
            at_once = max(1, portions.prepared // batch_size) * batch_size
            chunk, order = order[:at_once], order[at_once:]
            versions = self._prepared(chunk, epoch, portions)
            labels = upload(self.images.labels[chunk], self.images.device)
            batches = zip(*(features.split(batch_size) for features in versions), strict=True)
            for features, some_labels in zip(batches, labels.split(batch_size), strict=True):
                yield joined(features), some_labels

    def _prepared(self, chosen: Tensor, epoch: int, portions: Portions) -> list[Tensor]:
        def prepare() -> list[Tensor]:
            parts = [self._features(some, epoch) for some in chosen.split(portions.prepared)]
            return [joined(features) for features in zip(*parts, strict=True)]

        return fitting(prepare, portions.prepare_fewer)

    def _features(self, chosen: Tensor, epoch: int) -> list[Tensor]:
        """Of the images, and of their twins if there are any."""
        plan = self.augmentation.plan(self.images.keys[chosen], self.seed, epoch)
        if self.victim:
            self.victim.refill()
        by_gradient = partial(self._perturbed, chosen)
        pixels = self.images.pixels(chosen)
        plans = [plan, plan.unperturbed] if self.twins else [plan]
        return [self.frozen_part(self.augmentation.apply(pixels, each, by_gradient)) for each in plans]

    def _perturbed(self, chosen: Tensor, perturbation: AdaptivePerturbation, some: Chosen) -> Tensor:
        """Against the network as it is now; or a part of the way, or up to twice as far, to what was made before."""
        rows = chosen[some.positions]
        if perturbation.against == "self" and self.victim:
            labels = upload(self.images.labels[rows], self.images.device)
            return attack(perturbation, self.victim, Targets(some.pixels, labels, some.keys, some.severities))
        made = some.move(self.images.adversarial(perturbation.name, rows))
        far = (some.severities / perturbation.scored_severity).view(-1, 1, 1, 1)
        return some.pixels.lerp(made, far).clamp_(0, 1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; a single one as it is, not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
