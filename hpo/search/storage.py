"""Opens SQLite or PostgreSQL: as an SQLAlchemy engine for queries, and together with Optuna's storage for workers."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hpo.errors import HpoError, InputError, StorageError
from hpo.search.tables import view_statements

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

DEFAULT_STORAGE = "sqlite:///hpo.db"
SQLITE_BUSY_TIMEOUT_SECS = 60
CREATION_LOCK = 0x68706F  # "hpo": the key of PostgreSQL's advisory lock while tables and views are made
POSTGRESQL_CONNECT_ARGS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


@dataclass(frozen=True)
class Database:
    """One database seen from both sides: Optuna's storage and an engine for SQL."""

    url: sa.URL
    storage: "BaseStorage"
    engine: sa.Engine


def parse_url(text: str) -> sa.URL:
    """sqlite:///file.db or postgresql://user:password@host/database. Raises InputError; never shows a password."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise InputError(
            "--storage: not a database URL; give sqlite:///file.db or postgresql://user:password@host/database"
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"--storage: '{url.drivername}' is not supported; give sqlite:///… or postgresql://…")
    if url.get_backend_name() == "sqlite":
        _check_sqlite_file(url.database)
    return url


def _check_sqlite_file(file: str | None) -> None:
    if file in (None, "", ":memory:"):
        raise InputError("--storage: workers share the database, so it must be a file: sqlite:///file.db")
    if Path(file).is_dir() or not Path(file).parent.is_dir():
        raise InputError(f"--storage: {file} must be a file in a folder that exists")


def masked(url: sa.URL) -> str:
    """The URL as it may be shown: without its password, wherever it stands."""
    url = url.update_query_dict({key: "***" for key in url.query if "pass" in key.lower()})
    return url.render_as_string(hide_password=True).replace("postgresql+psycopg://", "postgresql://")


def open_engine(url: sa.URL) -> sa.Engine:
    """For queries on a database that exists. Raises InputError or StorageError if it does not, or cannot be reached."""
    file = _sqlite_file(url)
    if file is not None and not os.path.exists(file):
        raise InputError(f"--storage: {masked(url)} does not exist yet; `hpo run` or `hpo submit` makes it")
    engine = sa.create_engine(url, **_engine_arguments(url))
    try:
        with engine.connect() as connection:
            tables = sa.inspect(connection).get_table_names()
    except SQLAlchemyError as error:
        raise unreachable(url, error) from None
    if "trials" not in tables:
        raise InputError(f"--storage: {masked(url)} holds no studies yet; `hpo submit` puts one there")
    return engine


def open_database(url: sa.URL, create: bool = False) -> Database:
    """Opens for work; `create` makes the file, Optuna's tables and the views where they are missing.

    Raises InputError if there is nothing to open, StorageError if it cannot be opened.
    """
    if not create:
        open_engine(url).dispose()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        backend = _create_backend(url) if create else _open_backend(url, skip_table_creation=True)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        raise unreachable(url, error) from None
    except RuntimeError as error:  # Optuna's word for tables of another version
        raise StorageError(f"--storage: {masked(url)}: {str(error).splitlines()[0]}") from None
    return Database(url, optuna.storages.get_storage(backend), backend.engine)


def _create_backend(url: sa.URL) -> "RDBStorage":
    """Makes what is missing, one process at a time: Optuna's own creation of tables collides with another's."""
    if (file := _sqlite_file(url)) is not None:
        with FileLock(_lock_file(file)):
            backend = _open_backend(url, skip_table_creation=False)
            _prepare(backend.engine)
        return backend
    locking = sa.create_engine(url, poolclass=NullPool, connect_args=POSTGRESQL_CONNECT_ARGS)
    with locking.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({CREATION_LOCK})")  # until the connection closes
        backend = _open_backend(url, skip_table_creation=False)
        _prepare(backend.engine)
    return backend


def _lock_file(file: str) -> Path:
    """In the temporary folder, since a lock beside the database would stay there for ever."""
    digest = hashlib.sha256(str(Path(file).resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hpo-{os.getuid() if hasattr(os, 'getuid') else 0}-{digest}.lock"


def _open_backend(url: sa.URL, skip_table_creation: bool) -> "RDBStorage":
    from optuna.storages import RDBStorage

    text = url.render_as_string(hide_password=False)
    return RDBStorage(text, engine_kwargs=_engine_arguments(url), skip_table_creation=skip_table_creation)


def _prepare(engine: sa.Engine) -> None:
    """WAL, and the views as this version of hpo defines them, replaced in one transaction."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        for statement in view_statements(engine.dialect.name):
            connection.exec_driver_sql(statement)


def _engine_arguments(url: sa.URL) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT_SECS}, "poolclass": NullPool}
    return {"connect_args": POSTGRESQL_CONNECT_ARGS, "pool_pre_ping": True, "pool_size": 2}


def _sqlite_file(url: sa.URL) -> str | None:
    return url.database if url.get_backend_name() == "sqlite" else None


def unreachable(url: sa.URL, error: Exception) -> HpoError:
    """One line for a database that cannot be opened, without its password."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    for secret in (url.password, *(value for key, value in url.query.items() if "pass" in key.lower())):
        reason = reason.replace(str(secret), "***") if secret else reason
    return StorageError(f"--storage: {masked(url)} cannot be opened: {reason}")
