"""The artifact store: checkpoints, weights and figures by name, in a folder or bucket that all workers can reach.

Built on Optuna's own stores. In a folder, files are replaced atomically.
"""

import contextlib
import glob
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.errors import InputError

DEFAULT_LOCATION = "hpo-artifacts"
DENIED = ("AccessDenied", "403")
ALLOWED = "give a folder, s3://bucket/… or gs://bucket/…"


def open_artifacts() -> "Artifacts":
    """The store that HPO_ARTIFACTS names, else the default folder. Raises InputError."""
    return Artifacts(os.environ.get("HPO_ARTIFACTS") or DEFAULT_LOCATION)


class Artifacts:
    """Artifacts by name. A '/' in a name means a subfolder in a folder, and is part of the key in a bucket."""

    def __init__(self, location: str) -> None:
        """location: a folder, s3://bucket/prefix or gs://bucket/prefix. Raises InputError."""
        self.location = location
        scheme, is_url, rest = location.partition("://")
        self._folder = None if is_url else Path(location).expanduser()
        if self._folder is not None:
            self._store: ArtifactStore = _FolderStore(self._folder)
            self._prefix = ""
            return
        bucket, _, prefix = rest.partition("/")
        self._store = _open_bucket(scheme, bucket)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""

    def check(self) -> None:
        """Raises InputError if this machine cannot write to the store, or cannot read what it wrote."""
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            for path in (self._folder, *self._folder.parents) if self._folder is not None else ():
                if path.exists() and not path.is_dir():
                    raise InputError(f"HPO_ARTIFACTS: {path} is a file, not a folder; {ALLOWED}")
            self.write(probe, b"hpo")
            if self.read(probe) != b"hpo":
                raise InputError(f"HPO_ARTIFACTS: {self.location} can be written but not read")
            self.remove(probe)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"HPO_ARTIFACTS: {self.location} cannot be written: {reason}") from None

    def files(self) -> dict[str, os.stat_result]:
        """All names, with size and time. Raises InputError for a bucket, which hpo may not have the right to list."""
        if self._folder is None:
            raise InputError(f"HPO_ARTIFACTS: {self.location} is a bucket; only folders are looked through")
        found = (path for path in self._folder.rglob("*") if path.is_file())
        return {path.relative_to(self._folder).as_posix(): path.stat() for path in found}

    def read(self, name: str) -> bytes | None:
        """None if there is no such artifact. Raises OSError.

        Without the permission to list a bucket, S3 reports a missing object as access denied. So a bucket that denies
        access counts as having no such artifact; `check` has made sure that existing ones can be read.
        """
        try:
            with _as_os_error(), self._store.open_reader(self._prefix + name) as stream:
                return stream.read()
        except ArtifactNotFound:
            return None
        except PermissionError:
            if self._folder is not None:
                raise
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes atomically. Raises OSError."""
        with _as_os_error():
            self._store.write(self._prefix + name, io.BytesIO(content))

    def remove(self, name: str) -> None:
        """Does nothing if there is no such artifact. Raises OSError."""
        with contextlib.suppress(ArtifactNotFound), _as_os_error():
            self._store.remove(self._prefix + name)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Bucket clients raise their own exceptions, all of which mean that the store is out of reach or refused access."""
    try:
        yield
    except (OSError, ArtifactNotFound):
        raise
    except Exception as error:
        answer = getattr(error, "response", None)  # botocore's
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
        raise (PermissionError if code in DENIED else ConnectionError)(str(error)) from error


def write_file(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as stream:  # readable as the umask allows: workers may run as several users
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)  # it was renamed, unless something went wrong


class _FolderStore(FileSystemArtifactStore):
    """Optuna's store writes files in place; this one survives a kill or power failure during a write."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        target = Path(self._get_filepath(artifact_id))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, content_body.read())

    def remove(self, artifact_id: str) -> None:
        target = Path(self._get_filepath(artifact_id))
        for partial in target.parent.glob(f".{glob.escape(target.name)}.*"):  # left by writers that were killed
            partial.unlink(missing_ok=True)
        super().remove(artifact_id)


def _open_bucket(scheme: str, bucket: str) -> ArtifactStore:
    if scheme not in ("s3", "gs"):
        raise InputError(f"HPO_ARTIFACTS: '{scheme}://' is not supported; {ALLOWED}")
    if not bucket:
        raise InputError(f"HPO_ARTIFACTS: '{scheme}://' names no bucket; {ALLOWED}")
    try:
        if scheme == "s3":
            from optuna.artifacts import Boto3ArtifactStore

            return Boto3ArtifactStore(bucket)
        from optuna.artifacts import GCSArtifactStore

        return GCSArtifactStore(bucket)
    except ImportError:
        raise InputError(f"HPO_ARTIFACTS: {scheme}:// needs another package: pip install 'hpo[{scheme}]'") from None
