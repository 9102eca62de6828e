"""What a worker asks of an objective: measurements of one configuration, step by step, and checkpoints between them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hpo.doors.parameters import Params


@dataclass(frozen=True)
class Trial:
    """What an objective measures. number: within the study; continues: numbers of the trials whose checkpoints it may
    go on from, latest first.
    """

    number: int
    params: Params
    baseline: bool
    continues: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image file in the artifact store, under its artifact_id (hexadecimal digits and hyphens)."""

    artifact_id: str
    filename: str
    mimetype: str


@dataclass(frozen=True)
class Measurement:
    """What an objective yields at each step.

    step: from 1; score: what is maximised; parts: what the score is made of; attributes: kept with the trial if this
    is its last; resumed: measured before the checkpoint that the trial goes on from; illustrate: draws pictures of
    what was learned, for trials worth looking at.
    """

    step: int
    score: float
    parts: Mapping[str, float]
    attributes: Mapping[str, Any]
    resumed: bool = False
    illustrate: Callable[[], Sequence[Picture]] = tuple


class Objective(Protocol):
    """One study's objective, set up once in a worker."""

    fingerprints: Mapping[str, str]
    """What must be the same for every worker of the study: its images, its weights."""
    about: Mapping[str, Any]
    """What its first worker writes into the study for those who look at it, by the attribute's key."""

    def check(self) -> None:
        """Raises InputError if this study cannot be measured as it is given; asked by the first worker of the study,
        since those with the same fingerprints need not ask again.
        """
        ...

    def run(self, trial: Trial) -> Generator[Measurement]:
        """Measures one configuration, step by step from 1, also those that a checkpoint has already. The caller
        closes it when the trial is paused or pruned; a paused one may then go on elsewhere. Raises MemoryError if the
        configuration needs more memory than there is.
        """
        ...

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes the checkpoints of these trials."""
        ...
