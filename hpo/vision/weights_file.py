"""Checks the file named by `model.weights` without PyTorch, before images are downloaded and decoded."""

import hashlib
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hpo.doors.network import Network
from hpo.errors import WeightsError, nearest
from hpo.study_file.images import WEIGHTS_WITHOUT_FILE
from hpo.vision.data.disk import on_this_machine
from hpo.vision.data.file_kinds import HEAD_BYTES, archive_kind, placeholder_kind

SAFETENSORS = ".safetensors"
OF_PYTORCH = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
"""Suffixes in use for files written by `torch.save`."""


def weights_file(weights: str) -> Path | None:
    """The path of the user's weights file; None if `weights` is not a file but `imagenet` or `none`.

    Raises WeightsError if the file does not exist, cannot be read, or is evidently not what its name says.
    """
    if weights in WEIGHTS_WITHOUT_FILE:
        return None
    path = on_this_machine(weights)
    if not path.name.lower().endswith((SAFETENSORS, *OF_PYTORCH)):
        raise WeightsError(
            f"model.weights: {weights} must be 'imagenet', 'none', or a .safetensors or .pth file."
            f"{nearest(path.name, WEIGHTS_WITHOUT_FILE)} Read as .pth too: {', '.join(OF_PYTORCH[1:])}"
        )
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            raise WeightsError(f"model.weights: {path} is a folder; give a .safetensors or .pth file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if path.suffix.lower() == SAFETENSORS:
            with safe_open(path, framework="numpy"):
                pass
        elif kind := _what_instead(head):
            raise WeightsError(f"model.weights: {path} is no PyTorch file but {kind}")
    except FileNotFoundError:
        raise WeightsError(f"model.weights: {path} does not exist; give a .safetensors or .pth file") from None
    except OSError as error:
        raise WeightsError(f"model.weights: {path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        if head[8:10] == b'{"':
            raise WeightsError(f"model.weights: {path} is cut short or damaged; fetch it again") from None
        of_pytorch = "what torch.save writes; name it .pth" if head.startswith((b"PK", b"\x80")) else None
        reason = f" but {kind}" if (kind := of_pytorch or _what_instead(head)) else f": {error}"
        raise WeightsError(f"model.weights: {path} is no .safetensors file{reason}") from None
    return path


def _what_instead(head: bytes) -> str | None:
    """What a supposed weights file is instead, judged by its first bytes; None if unknown."""
    if head[8:10] == b'{"':
        return "a .safetensors file; name it so"
    if kind := archive_kind(head):
        return f"{kind}; unpack it"
    return placeholder_kind(head)


def without_prefix(names: Iterable[str], landmark: str = Network.landmark) -> dict[str, str]:
    """Each tensor's name, mapped to the name without the prefix that wrappers of the network added to all of them, such
    as `module.`, `_orig_mod.`, `model.`, `backbone.` or several. Unchanged unless exactly one tensor is the family's
    landmark.
    """
    names = list(names)
    prefixes = {_before(landmark, name) for name in names} - {None}
    if len(prefixes) != 1:
        return {name: name for name in names}
    parts = str(prefixes.pop()).split(".")[:-1]
    stripped = {name: _without(parts, name) for name in names}
    return stripped if len(set(stripped.values())) == len(names) else {name: name for name in names}


def _before(landmark: str, name: str) -> str | None:
    """What stands before the landmark; None if the name is of another tensor."""
    return name.removesuffix(landmark) if f".{name}".endswith(f".{landmark}") else None


def _without(parts: list[str], name: str) -> str:
    """The name without as many leading `parts` as it has: next to `module.backbone.conv1.weight`, `module.fc.weight`
    becomes `fc.weight`.
    """
    for part in parts:
        if not name.startswith(f"{part}."):
            break
        name = name.removeprefix(f"{part}.")
    return name


def prefixes_in(names: Iterable[str], landmark: str = Network.landmark) -> list[str]:
    """The prefix of each network among the tensors; without one, the prefix that all names share, if any."""
    names = list(names)
    found = {prefix for name in names if (prefix := _before(landmark, name)) is not None}
    common = {name.partition(".")[0] + "." for name in names}
    return sorted(found or (common if len(common) == 1 else set()))


def digest(tensors: Mapping[str, bytes | memoryview]) -> str:
    """SHA-256 of the tensors' names and bytes (contiguous, little-endian), independent of the file format and of
    a prefix that wrappers added to all names.
    """
    sha = hashlib.sha256()
    by_name = {short: tensors[name] for name, short in without_prefix(tensors).items()}
    for name in sorted(by_name):
        sha.update(name.encode())
        sha.update(by_name[name])
    return sha.hexdigest()
