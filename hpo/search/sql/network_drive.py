"""Checks that SQLite on a network drive is used by one machine only.

With write-ahead logging, processes share memory that other machines do not see; several machines would corrupt the
database.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from hpo.errors import InputError
from hpo.search.sql.tables import trial_user_attributes, trials

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "9p",
    "sshfs",
)
"""Names of file systems in the kernel, without the prefix `fuse.`."""


def check_network_drive(engine: sa.Engine, say: Callable[[str], None]) -> None:
    """Warns if SQLite's file is on a network drive. Raises InputError if workers of other machines use it."""
    if engine.dialect.name != "sqlite":
        return
    file = Path(str(engine.url.database)).resolve()
    kind = _file_system(file)
    if kind.removeprefix("fuse.") not in NETWORK:
        return
    where = f"--storage: {file} is on a network drive ({kind})"
    if others := _hosts_at_work(engine) - {socket.gethostname()}:
        raise InputError(
            f"{where} and workers of {', '.join(sorted(others))} use it: SQLite serves one machine; use PostgreSQL for "
            "several"
        )
    say(f"{where}: SQLite serves the workers of one machine only; use PostgreSQL for several")


def _file_system(file: Path) -> str:
    """The file system that holds the file; empty if unknown."""
    best, kind = Path("/"), ""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = Path(fields.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape"))
        if file.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, rest.split()[0]
    return kind


def _hosts_at_work(engine: sa.Engine) -> set[str]:
    query = (
        sa.select(trial_user_attributes.c.value_json)
        .join(trials, trials.c.trial_id == trial_user_attributes.c.trial_id)
        .where(trial_user_attributes.c.key == "worker", trials.c.state == "RUNNING")
    )
    with engine.connect() as connection:
        return {str(json.loads(text)).rpartition(":")[0] for text in connection.scalars(query)}
