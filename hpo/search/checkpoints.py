"""Checkpoints in the artifact store: a trial's reports so far, and the state its objective needs to continue."""

import contextlib
import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo import PROTOCOL
from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Objective, Take, Trial
from hpo.search.loading import fingerprints_of
from hpo.study_file.spec import Spec

MAGIC = b"hpo checkpoint 1\n"
"""Followed by a line of JSON with identity and reports, and then the objective's own bytes."""

Reports = list[dict[str, float]]


@dataclass(frozen=True)
class Checkpoint:
    """reports: score and parts after each step so far; content: the objective's own bytes."""

    reports: Reports
    content: bytes


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study in the artifact store (hpo.doors.objective.Store)."""

    artifacts: Artifacts
    folder: str

    @property
    def location(self) -> str:
        return f"{self.artifacts.location}/{self.folder}"

    def read(self, name: str) -> bytes | None:
        return self.artifacts.read(f"{self.folder}/{name}")

    def write(self, name: str, content: bytes) -> None:
        try:
            self.artifacts.write(f"{self.folder}/{name}", content)
        except OSError as error:
            reason = f"HPO_ARTIFACTS: {self.location}/{name} cannot be written: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, reason) from error

    def remove(self, name: str) -> None:
        self.artifacts.remove(f"{self.folder}/{name}")


def checkpoint_name(number: int) -> str:
    """The name of a trial's checkpoint in its study's folder."""
    return f"trial-{number}.checkpoint"


def identity(
    spec: Spec, objective: Objective, params: Mapping[str, Any], confirms: Mapping[str, Any] | None = None
) -> str:
    """What must be equal to continue from a checkpoint: another study of the same name may have left its own. confirms:
    which run of a confirmation it is, None in a search.
    """
    about = spec.identity() | fingerprints_of(spec, objective) | dict(objective.checkpoint_identity())
    about |= {"protocol": PROTOCOL, "params": dict(params)} | ({"confirms": dict(confirms)} if confirms else {})
    return json.dumps(about, sort_keys=True)


def load(folder: StudyFolder, continues: Sequence[int], whose: str) -> Checkpoint | None:
    """The first checkpoint with this identity among those of the trials in `continues`, latest first; None if none."""
    for number in continues:
        content = folder.read(checkpoint_name(number))
        if content is None or not content.startswith(MAGIC):
            continue
        with contextlib.suppress(ValueError, KeyError):  # damaged: use an older one, or start over
            end = content.index(b"\n", len(MAGIC))
            header = json.loads(content[len(MAGIC) : end])
            if header["identity"] == whose:
                return Checkpoint(header["reports"], content[end + 1 :])
    return None


def taking(
    folder: StudyFolder, trial: Trial, continues: Sequence[int], whose: str, measured: Measurement, reports: Reports
) -> Callable[[], Callable[[], None]]:
    """A function that copies a checkpoint, as CheckpointWriter.offer expects it."""
    header = json.dumps({"identity": whose, "reports": reports}).encode()
    offered = measured.checkpoint

    def take() -> Callable[[], None]:
        content = _content(offered)

        def write() -> None:
            folder.write(checkpoint_name(trial.number), MAGIC + header + b"\n" + content())
            for number in set(continues) - {trial.number}:  # replaced by this one
                folder.remove(checkpoint_name(number))

        return write

    return take


def _content(offered: bytes | Take | None) -> Callable[[], bytes]:
    taken = offered() if callable(offered) else offered or b""
    return taken if callable(taken) else lambda: taken


def discard(folder: StudyFolder | None, numbers: Sequence[int]) -> None:
    """Removes the checkpoints of these trials. Errors are ignored, since a leftover file does no harm."""
    if folder is None:
        return
    for number in numbers:
        with contextlib.suppress(OSError):
            folder.remove(checkpoint_name(number))


class NoStore:
    """Keeps nothing (hpo.doors.objective.Store)."""

    @property
    def location(self) -> str:
        return "nowhere"

    def read(self, name: str) -> None:
        return None

    def write(self, name: str, content: bytes) -> None:
        pass
