"""What torchvision's families have in common: a table of names, and building without randomness in training."""

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from hpo.doors.network import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import nn

DOWNLOADS = "https://download.pytorch.org/models/"


class Published(NamedTuple):
    """A network of torchvision.

    units: how many may be frozen; million_weights: rounded; bytes_per_pixel: memory of a training step in fp32 for each
    pixel of a batch (benchmarks/network_memory.py); imagenet: the file of torchvision's default weights.
    """

    units: int
    million_weights: int
    bytes_per_pixel: int
    imagenet: str


class TorchvisionNetwork(Network):
    """A family of torchvision's."""

    published: "ClassVar[Mapping[str, Published]]"
    keys_without_decay: ClassVar[tuple[str, ...]] = ()
    """Parts of the names of parameters that are customarily not decayed, though they have several dimensions."""

    def __init_subclass__(cls) -> None:
        cls.names = tuple(cls.published)
        cls.freezable = {name: row.units for name, row in cls.published.items()}
        cls.million_weights = {name: row.million_weights for name, row in cls.published.items()}
        cls.bytes_per_pixel = {name: row.bytes_per_pixel for name, row in cls.published.items()}
        cls.imagenet = {name: DOWNLOADS + row.imagenet for name, row in cls.published.items()}

    @staticmethod
    def build(name: str, classes: int, input_size: int) -> "nn.Module":
        """torchvision's network with random weights."""
        return built(name, classes)

    @staticmethod
    def arguments(input_size: int) -> dict[str, int]:
        """What torchvision's own builder needs beside the number of classes."""
        return {}

    @classmethod
    def undecayed(cls, module: "nn.Module") -> "Collection[str]":
        """Those whose names have one of `keys_without_decay`."""
        names = [name for name, _ in module.named_parameters()]
        return [name for name in names if any(key in name for key in cls.keys_without_decay)]


def built(name: str, classes: int, **options: int) -> "nn.Module":
    """torchvision's network of this name without dropout and stochastic depth: they would draw from PyTorch's own
    generator, which neither a resumed training nor a CUDA graph repeats.
    """
    from torch import nn
    from torchvision.models import get_model
    from torchvision.ops import StochasticDepth

    module: nn.Module = get_model(name, num_classes=classes, **options)
    for part in module.modules():
        if isinstance(part, nn.Dropout | StochasticDepth):
            part.p = 0.0
    return module


def in_stages(features: "Iterable[nn.Module]") -> "list[nn.Module]":
    """The units of a stem and stages of blocks with downsampling between them, which belongs to the block after it."""
    from torch import nn

    stem, *others = features
    units, downsampling = [stem], list[nn.Module]()
    for number, part in enumerate(others):
        if number % 2:
            downsampling = [part]
        else:
            first, *rest = part.children()
            units += [nn.Sequential(*downsampling, first) if downsampling else first, *rest]
    return units
