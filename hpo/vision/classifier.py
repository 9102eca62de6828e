"""Networks with a new head, units frozen from one side, and weights loaded without pickle."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from hpo.doors.network import Network, family_of
from hpo.errors import InputError, WeightsError
from hpo.vision.normalise import Normalise
from hpo.vision.weights_file import SAFETENSORS, digest, prefixes_in, weights_file, without_prefix

Weights = dict[str, Tensor]
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
"""Keys under which checkpoints keep the network's state dict, next to the optimizer's and others."""
MAX_NESTING = 3
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.float64(0).__reduce__()[0],  # the constructor of NumPy scalars
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
]
"""Types that training scripts store next to the weights (arguments, best accuracy) and that cannot run code."""


class Head(nn.Module):
    """The last unit's output to logits, float32 (n, classes); fp32 even under autocast, since bf16 makes ties."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        *pool, linear = head if isinstance(head, nn.Sequential) else [head]
        if not isinstance(linear, nn.Linear):
            raise InputError(f"model.name: a network's head must end in nn.Linear, not {type(linear).__name__}")
        self.pool = nn.Sequential(*pool)
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return cast(Tensor, self.linear(self.pool(features.float())))


class Frozen(nn.Sequential):
    """A frozen unit within the trainable part: its BatchNorm stays in eval mode, also after `train()`."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(False)
        return self


class Classifier(nn.Module):
    """A network that takes pixels as `normalise` does. Its first or last units may be frozen, its head never is.

    A frozen unit's parameters have no gradients, and its BatchNorm stays in eval mode, also after `train()`.
    Output: logits, float32 (n, classes). classes: their names, of an exported network.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, module: nn.Module, family: type[Network], normalise: Normalise, frozen_layers: int, frozen_side: str
    ) -> None:
        super().__init__()
        self.module = module
        self.family = family
        self.normalise = normalise
        count = len(family.units(module))
        self.first_trained = frozen_layers if frozen_side == "input" else 0
        self.end_of_trained = count if frozen_side == "input" else count - frozen_layers
        for unit in self.frozen_units:
            unit.requires_grad_(False)
        self.train()

    @property
    def frozen_units(self) -> list[nn.Module]:
        """The units whose weights are kept, from the input on."""
        units = self.family.units(self.module)
        return units[: self.first_trained] + units[self.end_of_trained :]

    @property
    def frozen_part(self) -> nn.Sequential:
        """From pixels to the input of the first trained unit: its output is constant throughout a training."""
        return nn.Sequential(self.normalise, *self.family.units(self.module)[: self.first_trained])

    @property
    def trainable_part(self) -> nn.Sequential:
        """From the output of `frozen_part` to the logits; includes units frozen at the output side."""
        units = self.family.units(self.module)
        trained = units[self.first_trained : self.end_of_trained]
        return nn.Sequential(*trained, *(Frozen(unit) for unit in units[self.end_of_trained :]), self.head)

    @property
    def head(self) -> Head:
        return Head(self.family.head(self.module))

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Parameters of several dimensions without weight decay."""
        parameters = dict(self.module.named_parameters())
        return [parameters[name] for name in self.family.undecayed(self.module)]

    @property
    def head_name(self) -> str:
        """Prefix of the names of the last linear layer's tensors, such as `fc.`."""
        return _head_name(self.family, self.module)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for unit in self.frozen_units:
            unit.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.frozen_part(pixels)
        return cast(Tensor, self.trainable_part(features))


def _head_name(family: type[Network], module: nn.Module) -> str:
    linear = Head(family.head(module)).linear
    return next(f"{name}." for name, each in module.named_modules() if each is linear)


def build_network(
    name: str,
    classes: int,
    weights: Mapping[str, Tensor],
    input_size: int,
    frozen_layers: int,
    seed: int,
    frozen_side: str = "input",
) -> Classifier:
    """A network with the given weights; tensors missing there (the head, or all) are random, drawn from `seed`.

    frozen_layers: how many units keep these weights in training, counted from the `frozen_side`: "input", or "output"
    (Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023, arXiv:2210.11466).

    Raises WeightsError naming the tensors that do not fit, InputError if the network has fewer units to freeze.
    """
    family = family_of(name)
    given: Weights = {}
    module = None
    if weights and family.builds_without_memory:
        with torch.device("meta"):
            module = family.build(name, classes, input_size)
        given = _fitting(weights, module, name, family)
        if set(given) == set(module.state_dict()):  # drawing random weights in vain takes 0.2 s
            module.load_state_dict(given, assign=True)
        else:
            module = None
    if module is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = family.build(name, classes, input_size)
        given = given or _fitting(weights, module, name, family)
        module.load_state_dict(given, strict=False)
    if frozen_layers > (count := len(family.units(module))):
        raise InputError(f"search.frozen_layers: {frozen_layers} is more than the {count} of {name}")
    normalise = Normalise(input_size, family.normalisation(name))
    network = Classifier(module, family, normalise, frozen_layers, frozen_side)
    return network.to(memory_format=torch.channels_last)


def _fitting(weights: Mapping[str, Tensor], module: nn.Module, name: str, family: type[Network]) -> Weights:
    """Copies of the given tensors, in the network's own dtypes.

    All tensors except the head's must fit, otherwise raises WeightsError. The head is used if its shapes match.
    """
    if not weights:
        return {}
    own, head = module.state_dict(), _head_name(family, module)
    weights = family.adapted(dict(weights), module)
    given = {key: tensor for key, tensor in weights.items() if not key.startswith(head)}
    body = {key: tensor for key, tensor in own.items() if not key.startswith(head)}
    counters = {key: torch.zeros((), dtype=torch.int64) for key in body if key.endswith("num_batches_tracked")}
    given = counters | given
    problems = [f"{key} is missing" for key in body if key not in given]
    problems += [f"{key} is unknown" for key in given if key not in body]
    problems += [
        f"{key} is {tuple(given[key].shape)} instead of {tuple(body[key].shape)}"
        for key in body
        if key in given and given[key].shape != body[key].shape
    ]
    problems += [
        f"{key} holds whole numbers ({given[key].dtype})"
        for key in body
        if key in given and body[key].is_floating_point() and not given[key].is_floating_point()
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        prefixes = [f"'{prefix}'" for prefix in prefixes_in(weights, family.landmark) if prefix]
        more += f"; their names begin with {' and '.join(prefixes)}" if prefixes else ""
        raise WeightsError(
            f"model.weights: do not fit model.name = '{name}'; give weights of this network, or "
            f"set model.name to the one that they are of: "
            f"{'; '.join(problems[:4])}{more}"
        )
    shapes = {key: tensor.shape for key, tensor in own.items() if key.startswith(head)}
    last = {key: weights[key] for key, shape in shapes.items() if key in weights and weights[key].shape == shape}
    fitting = given | (last if len(last) == len(shapes) else {})
    return {key: tensor.to(own[key].dtype, copy=True) for key, tensor in fitting.items()}


def read_weights(name: str, weights: str) -> Weights:
    """The tensors by name: `imagenet`'s, those of a .safetensors or .pth file, or an empty dict for `none`.

    Never unpickles arbitrary objects. Raises WeightsError.
    """
    path = weights_file(weights)
    if path is None:
        return {} if weights == "none" else _imagenet_weights(name)
    try:
        tensors = load_file(path) if path.suffix.lower() == SAFETENSORS else _load_pth(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"model.weights: {path} cannot be read: {_why_not_unpickled(error)}") from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # the rest is advice by PyTorch that does not apply
        raise WeightsError(f"model.weights: {path} cannot be read: {reason or 'it is cut short'}") from None
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise WeightsError(f"model.weights: {path} must hold tensors by name (a state dict){_listed(tensors)}")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"model.weights: {path}: {key} holds NaN or infinity; give other weights")
    return {short: tensors[long] for long, short in without_prefix(tensors, family_of(name).landmark).items()}


def _why_not_unpickled(error: pickle.UnpicklingError) -> str:
    """One line that names the refused type, which PyTorch names within several lines of advice."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds more than tensors ({named[1]}), which could run code when loaded; save a state dict, best as "
            ".safetensors"
        )
    return "it is no state dict that torch.save wrote, or it is damaged; fetch it again, or give a .safetensors file"


def _load_pth(path: Path) -> Weights:
    """The state dict in a file by torch.save, which may be nested in a checkpoint under one of STATE_KEYS."""
    quiet = warnings.catch_warnings(action="ignore")  # PyTorch warns of other pickle protocols, then refuses them
    with quiet, torch.serialization.safe_globals(HARMLESS):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise WeightsError(f"model.weights: {path} must hold tensors by name (a state dict)")
    for _ in range(MAX_NESTING):
        inner = [loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), dict)]
        loaded = inner[0] if inner else loaded
    return {str(key): tensor for key, tensor in loaded.items()}


def _listed(entries: Mapping[str, object]) -> str:
    others = [key for key, value in entries.items() if not isinstance(value, Tensor)]
    return f", not {', '.join(others[:4])}{' …' if len(others) > 4 else ''}" if others else ""


def _imagenet_weights(name: str) -> Weights:
    family = family_of(name)
    try:
        if url := family.imagenet.get(name):
            return load_state_dict_from_url(url, map_location="cpu", progress=False, check_hash=True, weights_only=True)
        weights = family.pretrained(name)
    except (OSError, RuntimeError) as error:
        reason = str(getattr(error, "reason", None) or error).partition("\n")[0]
        raise WeightsError(
            f"model.weights: 'imagenet' could not be downloaded ({reason}); give a .safetensors or .pth file, or 'none'"
        ) from None
    if weights is None:
        raise WeightsError(f"model.weights: there are none from ImageNet for {name}; give a file, or 'none'")
    return weights


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' names and values, independent of the file format."""
    plain = {name: tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for name, tensor in weights.items()}
    return digest({name: tensor.numpy().data for name, tensor in plain.items()})
