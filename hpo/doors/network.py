"""What every family of networks is: how to build one by name, its units from the input on, its head, its weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from hpo.doors.registry import Door
from hpo.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn


class Network:
    """A family. Import PyTorch in the functions: names are read where it is not loaded."""

    names: ClassVar[tuple[str, ...]]
    """What `[model] name` may be."""
    freezable: ClassVar[Mapping[str, int]] = {}
    """By name, how many units there are, where that is known: study files are then checked without building one."""
    imagenet: ClassVar[Mapping[str, str]] = {}
    """By name, the URL of the tensors that `model.weights = "imagenet"` stands for, whose last part ends in the first
    digits of its SHA-256, as PyTorch's own do.
    """
    builds_without_memory: ClassVar[bool] = False
    """Whether `build` works on PyTorch's meta device, which saves drawing numbers that weights then replace."""

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


NETWORKS = Door("family of networks", "hpo.vision.networks", "hpo.networks", Network)


def family_of(name: str) -> type[Network]:
    """The family that has a network of this name. Raises InputError."""
    for member in NETWORKS.own():
        if name in (family := NETWORKS.find(member)).names:
            return family
    if name in NETWORKS.installed() and name in (family := NETWORKS.find(name)).names:
        return family  # without loading other packages, and with its error if it cannot be loaded
    for family in NETWORKS.loadable().values():
        if name in family.names:
            return family
    allowed = network_names()
    raise InputError(f"no network '{name}'; installed here are: {', '.join(allowed)}.{nearest(name, allowed)}")


def freezable_layers(name: str) -> int | None:
    """How many units the network has; None where that is not known here."""
    try:
        return family_of(name).freezable.get(name)
    except InputError:
        return None


def network_names() -> list[str]:
    """Of all families that can be loaded, hpo's own first."""
    return [name for family in NETWORKS.loadable().values() for name in family.names]
