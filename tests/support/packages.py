"""Packages as pip leaves them, for the entry points that they have."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo.doors import registry
from hpo.search import provenance
from hpo.search.sql import studies


def install(folder: Path, module: str, code: str, entry_points: str) -> dict[str, str]:
    """A package of one module; the environment variables of processes that find it."""
    information = folder / f"{module}-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


@contextmanager
def importable(folders: str) -> Iterator[None]:
    """Packages in these folders, separated as in PYTHONPATH, are found by this process in this block only."""
    added = folders.split(os.pathsep) if folders else []
    sys.path[:0] = added
    if added:
        _forget_what_was_found()
    try:
        yield
    finally:
        del sys.path[: len(added)]
        if added:
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None)).startswith(tuple(added)):
                    del sys.modules[name]
            _forget_what_was_found()


def _forget_what_was_found() -> None:
    for cached in (registry._installed, registry._digest, provenance._versions, studies._read_spec):
        cached.cache_clear()
