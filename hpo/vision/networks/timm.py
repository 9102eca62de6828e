"""Any network of timm's, by `timm/NAME`, in the layer groups that timm gives it. Needs the extra `timm`."""

import contextlib
import logging
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.doors.network import Channels, Network
from hpo.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor, nn

    from hpo.vision.splitting import Part

PREFIX = "timm/"
PARTS = "parts_in_order"
"""The attribute of a network that holds its parts."""


class Timm(Network):
    """Networks of timm, whose units are timm's layer groups as far as they run one after another."""

    prefix = PREFIX
    landmark = ""

    @classmethod
    def has(cls, name: str) -> bool:
        if not name.startswith(PREFIX):
            return False
        architecture = name.removeprefix(PREFIX).partition(".")[0]
        if architecture not in (allowed := _architectures()):
            raise InputError(f"timm has no network '{name.removeprefix(PREFIX)}'.{nearest(architecture, allowed)}")
        return True

    @staticmethod
    def build(name: str, classes: int, input_size: int) -> "nn.Module":
        """timm's network without dropout, with random weights. Raises InputError if hpo cannot use it, or not with this
        size of images.
        """
        import torch
        from torch import nn

        module: nn.Module = _created(name, classes, input_size)
        setattr(module, PARTS, _parts(module, name))
        images = torch.rand(2, 3, input_size, input_size)
        with torch.no_grad():
            try:
                expected = module.eval()(images)
            except Exception as error:  # whatever code does that is given what it cannot take
                raise InputError(f"model.input_size: {name} takes no {input_size} px: {_first_line(error)}") from error
            for part in (*Timm.units(module), Timm.head(module)):
                images = part(images)
        if not torch.equal(images, expected):
            raise InputError(f"model.name: {name} cannot be used: its layers do not run in order")
        return module.train()

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """As timm groups its layers."""
        return [part.of(module) for part in getattr(module, PARTS)[:-1]]

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """What timm groups with the classifier."""
        from torch import nn

        return nn.Sequential(getattr(module, PARTS)[-1].of(module), module.get_classifier())

    @staticmethod
    def normalisation(name: str) -> tuple[Channels, Channels]:
        """Those that timm gives for the weights of this name."""
        settings = _settings(name)
        return settings.mean, settings.std

    @staticmethod
    def undecayed(module: Any) -> "Collection[str]":
        """What timm says of the network."""
        kept = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        return [name for name, _ in module.named_parameters() if name in kept]

    @staticmethod
    def adapted(weights: "dict[str, Tensor]", module: Any) -> "dict[str, Tensor]":
        """Without what wrappers put before all names; position embeddings interpolated, as timm does it."""
        own = {name: tensor.shape for name, tensor in module.state_dict().items()}
        while len({name.partition(".")[0] for name in weights}) == 1 and own.keys().isdisjoint(weights):
            weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
        body = {name for name in own if not name.startswith(f"{module.pretrained_cfg['classifier']}.")}
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        if convert is None or all(name in weights and weights[name].shape == own[name] for name in body):
            return weights
        with contextlib.suppress(Exception):  # weights of another network: said by what does not fit
            return dict(convert(dict(weights), module))
        return weights

    @staticmethod
    def pretrained(name: str) -> "dict[str, Tensor] | None":
        """timm's, from the Hugging Face hub or wherever they are."""
        import timm

        if not _settings(name).has_weights:
            return None
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each of its five attempts
        try:
            return dict(timm.create_model(name.removeprefix(PREFIX), pretrained=True).state_dict())
        except Exception as error:  # of the hub's client and the libraries that it is made of
            raise OSError(_first_line(error).partition(". ")[0]) from error


@cache
def _architectures() -> frozenset[str]:
    """Names of its networks, read from its code: importing it imports PyTorch. Raises InputError if there is none."""
    found = find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise InputError(f"model.name: {PREFIX}NAME needs timm; install it with: pip install timm")
    files = (Path(found.submodule_search_locations[0]) / "models").glob("*.py")
    code = (file.read_text(encoding="utf-8") for file in files)
    return frozenset(
        name for text in code for name in re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE)
    )


def _settings(name: str) -> Any:
    """timm's settings for a network and the weights that its name asks for. Raises InputError if there are no such."""
    from timm.models import get_pretrained_cfg

    try:
        return get_pretrained_cfg(name.removeprefix(PREFIX))
    except RuntimeError as error:
        raise InputError(f"model.name: {name}: {_first_line(error)}") from error


def _created(name: str, classes: int, input_size: int) -> Any:
    import timm
    from timm.layers import DropPath
    from torch import nn

    size = {"img_size": input_size} if _settings(name).fixed_input_size else {}
    try:
        module = timm.create_model(name.removeprefix(PREFIX), num_classes=classes, **size)
    except Exception as error:  # whatever its code does with a size that it cannot take
        raise InputError(f"model.input_size: {name} takes no {input_size} px: {_first_line(error)}") from error
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
        if hasattr(part, "drop_rate"):
            part.drop_rate = 0.0
    return module


def _parts(module: Any, name: str) -> "list[Part]":
    from timm.layers import Linear, get_notrace_functions
    from timm.models import group_parameters
    from torch import nn

    from hpo.vision.splitting import split

    last: Any = module.get_classifier() if hasattr(module, "get_classifier") else None
    if type(last) not in (nn.Linear, Linear) or not hasattr(module, "group_matcher"):
        raise InputError(f"model.name: {name} cannot be used: it has no layer groups, or no linear classifier")
    by_name = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    groups = {parameter: by_name[name] for name, parameter in module.named_parameters()}
    try:
        return split(module, groups, last, get_notrace_functions())
    except ValueError as error:
        raise InputError(f"model.name: {name} cannot be used: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
