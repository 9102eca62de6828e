"""A study's files in the artifact store: removed with the study, copied when it is renamed."""

import re
import shutil
from pathlib import Path

from hpo.artifacts import Artifacts
from hpo.search.checkpoints import checkpoint_name
from hpo.search.sql.whole_study import Kept


def location_in_full(location: str) -> str:
    """A location that can be stored and shown: an absolute path, or a bucket's URL without secrets."""
    if "://" in location:
        return re.sub(r"://[^/@]*@", "://", location).rstrip("/")
    return str(Path(location).expanduser().resolve())


def is_elsewhere(kept: str | None, artifacts: Artifacts) -> bool:
    """Whether the study's workers keep their files in another artifact store."""
    return kept is not None and location_in_full(kept) != location_in_full(artifacts.location)


def remove_left(artifacts: Artifacts, kept: Kept) -> None:
    """Removes pictures, checkpoints and weights. Raises OSError."""
    for picture in kept.pictures:
        artifacts.remove(picture)
    if kept.folder is not None:
        remove_folder(artifacts, kept)


def remove_folder(artifacts: Artifacts, kept: Kept) -> None:
    """Removes checkpoints and weights. Raises OSError."""
    for name in _names(kept):
        artifacts.remove(f"{kept.folder}/{name}")
    if "://" not in artifacts.location:
        shutil.rmtree(Path(artifacts.location).expanduser() / str(kept.folder), ignore_errors=True)


def copy_folder(artifacts: Artifacts, kept: Kept, folder: str, to: Artifacts | None = None) -> None:
    """Copies checkpoints and weights to another folder, of another store if one is given. Raises OSError."""
    for name in _names(kept):
        copy_file(artifacts, f"{kept.folder}/{name}", to or artifacts, f"{folder}/{name}")


def copy_file(artifacts: Artifacts, name: str, to: Artifacts, new_name: str) -> None:
    """Does nothing if there is no such file. Raises OSError."""
    content = artifacts.read(name)
    if content is not None:
        to.write(new_name, content)


def _names(kept: Kept) -> list[str]:
    """Checkpoints, also as older versions of hpo named them, and what the objective keeps for all workers."""
    checkpoints = [checkpoint_name(number) for number in kept.numbers]
    older = [f"{name}.safetensors" for name in checkpoints]
    return [*kept.shared, *checkpoints, *older]
