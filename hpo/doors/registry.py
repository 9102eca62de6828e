"""Where members of hpo's doors are looked up by name: a file each in a folder of hpo, and the entry points of installed
packages. Nothing else that a study file or a database names is ever imported.
"""

import contextlib
import hashlib
import inspect
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Generic, TypeVar

from hpo.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Door(Generic[T]):
    """One kind of members. what: a member, in people's words; folder: hpo's package that has a file for each, whose
    name is the member's with underscores; group: of the entry points; base: the class that each member's is below.
    """

    what: str
    folder: str
    group: str
    base: type[T]

    def own(self) -> list[str]:
        """Names of hpo's own members."""
        return list(_files_in(self.folder))

    def installed(self) -> list[str]:
        """Names of the entry points."""
        return list(_installed(self.group))

    def names(self) -> list[str]:
        """Of all members, hpo's own first."""
        return list(dict.fromkeys([*self.own(), *self.installed()]))

    def loadable(self) -> dict[str, type[T]]:
        """All members, by name, but for those of packages that cannot be loaded."""
        found: dict[str, type[T]] = {}
        for name in self.names():
            with contextlib.suppress(InputError):
                found[name] = self.find(name)
        return found

    def find(self, name: str) -> type[T]:
        """The member of this name. Raises InputError if there is none, or if its package cannot be loaded."""
        if name in _files_in(self.folder):
            return self._class_in(name)
        if name not in _installed(self.group):
            allowed = self.names()
            raise InputError(
                f"no {self.what} '{name}'; installed here are: {', '.join(allowed)}.{nearest(name, allowed)}"
            )
        found = _installed(self.group)[name]
        try:
            member = found.load()
        except Exception as error:  # whatever the package's own code raises
            raise InputError(f"{self.what} '{name}' ({found.value}) cannot be loaded: {error!r}") from error
        if not (isinstance(member, type) and issubclass(member, self.base)):
            raise InputError(f"{self.what} '{name}' ({found.value}) is no subclass of hpo.{self.base.__name__}")
        return member

    def package_of(self, name: str) -> str | None:
        """Name and version of the installed package that a member comes from; None for hpo's own."""
        found = None if name in _files_in(self.folder) else _installed(self.group).get(name)
        return f"{found.dist.name} {found.dist.version}" if found and found.dist else None

    def _class_in(self, name: str) -> type[T]:
        module = import_module(f"{self.folder}.{name.replace('-', '_')}")
        own = (each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__)
        return next(each for each in own if isinstance(each, type) and issubclass(each, self.base))


def code_of(member: type) -> str | None:
    """The SHA-256 of the file that a package's member is defined in; None for hpo's own."""
    return None if member.__module__.startswith("hpo.") else _digest(inspect.getfile(member))


@cache
def _digest(file: str) -> str:
    """Read once: a file that is changed later is not what this process runs."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@cache
def _files_in(folder: str) -> tuple[str, ...]:
    modules = iter_modules(import_module(folder).__path__)
    return tuple(sorted(module.name.replace("_", "-") for module in modules))


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=group)}
