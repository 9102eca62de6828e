"""What every family of networks is: how to build one by name, its units from the input on, its head, its weights."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from hpo.doors.registry import Door
from hpo.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

Channels = tuple[float, float, float]
ALL_SIZES = range(1, 2**16)


class Network:
    """A family. Import PyTorch in the functions: names are read where it is not loaded."""

    names: ClassVar[tuple[str, ...]] = ()
    """What `[model] name` may be."""
    prefix: ClassVar[str] = ""
    """What other names begin with, if a library has too many of them for `names`; `has` then knows which there are."""
    freezable: ClassVar[Mapping[str, int]] = {}
    """By name, how many units there are, where that is known: study files are then checked without building one."""
    imagenet: ClassVar[Mapping[str, str]] = {}
    """By name, the URL of the tensors that `model.weights = "imagenet"` stands for, whose last part ends in the first
    digits of its SHA-256, as PyTorch's own do.
    """
    input_sizes: ClassVar[Mapping[str, range]] = {}
    """By name, what `model.input_size` may be, where that is not any: checked when a study file is read."""
    million_weights: ClassVar[Mapping[str, int]] = {}
    """By name, how many millions of weights there are, for the estimate of a worker's memory."""
    bytes_per_pixel: ClassVar[Mapping[str, int]] = {}
    """By name, the memory that a training step in fp32 takes for each pixel of a batch, for the same."""
    landmark: ClassVar[str] = "layer1.0.conv1.weight"
    """The name of a tensor that every network has once, by which what wrappers put before all names is recognised."""
    builds_without_memory: ClassVar[bool] = False
    """Whether `build` works on PyTorch's meta device, which saves drawing numbers that weights then replace."""

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether a network has this name. Raises InputError if it has the prefix, and there is none."""
        return name in cls.names

    @staticmethod
    def build(name: str, classes: int, input_size: int) -> "nn.Module":
        """A network with random weights: normalised images, float32 (n, 3, input_size, input_size), to logits
        (n, classes).
        """
        raise NotImplementedError

    @staticmethod
    def units(module: "nn.Module") -> "list[nn.Module]":
        """From the input on, without the head: run in order, then the head, they are the network. `frozen_layers`
        counts them.
        """
        raise NotImplementedError

    @staticmethod
    def head(module: "nn.Module") -> "nn.Module":
        """An nn.Linear, or an nn.Sequential that ends in one: what a new number of classes replaces."""
        raise NotImplementedError

    @staticmethod
    def normalisation(name: str) -> tuple[Channels, Channels]:
        """Mean and standard deviation, of pixels in [0, 1], by which images are normalised."""
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    @staticmethod
    def undecayed(module: "nn.Module") -> Collection[str]:
        """Names of the parameters that weight decay leaves alone, besides those of one dimension (biases, norms)."""
        return ()

    @staticmethod
    def adapted(weights: "dict[str, Tensor]", module: "nn.Module") -> "dict[str, Tensor]":
        """Given weights as this module names and shapes them: of another input size, say, or of an older release."""
        return weights

    @staticmethod
    def pretrained(name: str) -> "dict[str, Tensor] | None":
        """The same tensors of a network that is not in `imagenet`, fetched as its library does; None if there are none.
        Raises OSError or RuntimeError if they cannot be fetched.
        """
        return None


MANY = 3
"""A family of more names is told by its first and its last."""
NETWORKS = Door("family of networks", "hpo.vision.networks", "hpo.networks", Network)


def family_of(name: str) -> type[Network]:
    """The family that has a network of this name. Raises InputError."""
    for member in NETWORKS.own():
        if (family := NETWORKS.find(member)).has(name):
            return family
    if name in NETWORKS.installed() and (family := NETWORKS.find(name)).has(name):
        return family  # without loading other packages, and with its error if it cannot be loaded
    families = NETWORKS.loadable().values()
    for family in families:
        if family.has(name):
            return family
    known = [each for family in families for each in _known(family)]
    raise InputError(f"no network '{name}'; installed here are: {', '.join(known)}.{nearest(name, network_names())}")


def _known(family: type[Network]) -> list[str]:
    """What is said of a family's names where there is no room for dozens."""
    first_and_last = [f"{family.names[0]} … {family.names[-1]}"] if len(family.names) > MANY else [*family.names]
    return [*first_and_last, *([f"{family.prefix}NAME"] if family.prefix else [])]


def check_size(name: str, input_size: int) -> None:
    """Raises ValueError if the network is known not to take images of this size."""
    sizes = family_of(name).input_sizes.get(name, ALL_SIZES)
    if input_size not in sizes:
        allowed = f"multiples of {sizes.step}" if sizes.step > 1 else f"{sizes.start} or more"
        raise ValueError(f"model.input_size: {name} takes {allowed}, not {input_size}")


def freezable_layers(name: str) -> int | None:
    """How many units the network has; None where that is not known here."""
    try:
        return family_of(name).freezable.get(name)
    except InputError:
        return None


def network_names() -> list[str]:
    """Of all families that can be loaded, hpo's own first, without those that only a prefix stands for."""
    return [name for family in NETWORKS.loadable().values() for name in family.names]


def network_prefixes() -> list[str]:
    """What the names of other networks begin with."""
    return [family.prefix for family in NETWORKS.loadable().values() if family.prefix]
