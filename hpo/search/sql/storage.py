"""Opens and creates databases with Optuna's tables. Optuna itself is imported only to create them."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hpo.errors import HpoError, InputError, StorageError
from hpo.search.sql.outages import first_line, is_outage
from hpo.search.sql.tables import OPTUNA_SCHEMA, alembic_version, metadata
from hpo.search.sql.url import masked, secrets_in, sqlite_file
from hpo.search.sql.view_rights import existing_views, read_kept, restore
from hpo.search.sql.views import VIEWS_VERSION, view_statements

SQLITE_BUSY_TIMEOUT_SECS = 60
IDLE_IN_TRANSACTION_SECS = 10
READ_ONLY = "25006"
"""PostgreSQL's code for writing in a read-only transaction."""
CREATION_LOCK = 0x68706F  # "hpo": key of PostgreSQL's advisory lock for creating tables and views
VIEWS_LOCK = CREATION_LOCK + 1  # for replacing views, also without the other lock
DEPENDENT_OBJECTS = "2BP01"
POSTGRESQL_CONNECT_ARGS = {
    "prepare_threshold": None,  # a pooler may run each transaction on another connection
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds until unacknowledged data count as a lost connection
}


def open_engine(url: sa.URL) -> sa.Engine:
    """Opens an existing database. Raises InputError if it does not exist, StorageError if it cannot be opened."""
    file = sqlite_file(url)
    if file is not None and not os.path.exists(file):
        raise InputError(f"--storage: {masked(url)} does not exist yet; `hpo run` or `hpo submit` makes it")
    engine = _engine(url)
    try:
        _check(url, engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _check(url: sa.URL, engine: sa.Engine) -> None:
    """Raises InputError or StorageError for a database that is unreachable, incomplete, or has another version of
    Optuna's tables; replaces the views of an older hpo.
    """
    try:
        with engine.connect() as connection:
            views = views_version(connection)
            version = connection.scalar(sa.select(alembic_version)) if views is not None else None
            strange = _strange_columns(connection) if version not in (None, OPTUNA_SCHEMA) else []
    except (SQLAlchemyError, ImportError) as error:
        raise unreachable(url, error) from None
    if version is None or views is None:
        raise InputError(f"--storage: {masked(url)} holds no studies of hpo yet; `hpo submit` puts one there")
    if strange:
        raise StorageError(
            f"--storage: {masked(url)} has Optuna's tables in version {version}, not {OPTUNA_SCHEMA}, and they differ "
            f"in {', '.join(strange)}; `optuna storage upgrade` updates older ones, newer ones need a newer hpo"
        )
    if views < VIEWS_VERSION:
        try:
            _make_views(engine)
        except SQLAlchemyError as error:
            raise _views_cannot_be_made(url, error) from None


def _strange_columns(connection: sa.Connection) -> list[str]:
    """Columns of Optuna's tables that are not there, and those that hpo does not know but would have to fill."""
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    found = []
    for table in metadata.sorted_tables:
        described = inspector.get_columns(table.name) if table.name in there else []
        columns = {column["name"]: column for column in described}
        missing = [name for name in table.columns.keys() if name not in columns]  # noqa: SIM118 (a collection of columns)
        needed = [
            name
            for name, column in columns.items()
            if name not in table.columns and not column["nullable"] and column["default"] is None
        ]
        found += [f"{table.name}.{name}" for name in (*missing, *needed)]
    return found


def _views_cannot_be_made(url: sa.URL, error: SQLAlchemyError) -> HpoError:
    if is_outage(error):
        return unreachable(url, error)
    where = f"--storage: {masked(url)} has the views of an older hpo"
    cause = getattr(error, "orig", None)
    if getattr(cause, "sqlstate", None) == DEPENDENT_OBJECTS:
        others = " ".join(str(cause.diag.message_detail).split("\n"))  # type: ignore[union-attr]
        return StorageError(
            f"{where}, which cannot be replaced while others depend on them: {others}; drop those, run `hpo init`, and "
            "create them again"
        )
    return StorageError(
        f"{where}, and this user may not replace them ({first_line(error)}); any command of one who may, such as "
        "`hpo status`, brings them up to date"
    )


def views_version(connection: sa.Connection) -> int | None:
    """The version of the views; None if there are none, as they are created after all tables."""
    if connection.dialect.name == "sqlite":
        text = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = 'trial_results'"))
    else:
        query = "SELECT coalesce(obj_description(v, 'pg_class'), '') FROM to_regclass('trial_results') v WHERE v <> 0"
        text = connection.scalar(sa.text(query))
    if text is None:
        return None
    found = re.search(r"hpo views (\d+)", text)
    return int(found[1]) if found else 1


def _make_views(engine: sa.Engine) -> None:
    """Replaces the views in one transaction, keeping readers' rights, unless another process has just done so."""
    with writing(engine) as connection:
        server = engine.dialect.name == "postgresql"
        if server:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({VIEWS_LOCK})")
        if (views_version(connection) or 0) >= VIEWS_VERSION:
            return
        existed, kept = (existing_views(connection), read_kept(connection)) if server else ([], [])
        for statement in view_statements(engine.dialect.name):
            connection.execute(sa.text(statement))
        if server:
            restore(connection, existed, kept)


def create_database(url: sa.URL) -> sa.Engine:
    """Opens a database, after creating the file, Optuna's tables and the views if they are missing.

    Only one process at a time does so, since Optuna's creation of tables is not safe otherwise. Raises InputError,
    StorageError.
    """
    try:
        if (file := sqlite_file(url)) is not None:
            with FileLock(_lock_file(file)):
                _create_tables(url)
        else:
            locking = sa.create_engine(url, poolclass=NullPool, connect_args=POSTGRESQL_CONNECT_ARGS)
            with locking.begin() as connection:  # not a session lock, which a pooler would keep
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
                _create_tables(url)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise unreachable(url, error) from None
    return open_engine(url)


def _create_tables(url: sa.URL) -> None:
    """Lets Optuna create its tables, turns on WAL in SQLite, and creates or replaces the views."""
    engine = _engine(url)
    try:
        if not _has_optunas_tables(url, engine):
            _let_optuna_create_its_tables(url)
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        with engine.connect() as connection:
            views = views_version(connection)
        if views is None or views < VIEWS_VERSION:
            try:
                _make_views(engine)
            except SQLAlchemyError as error:
                raise error if views is None else _views_cannot_be_made(url, error) from None
    finally:
        engine.dispose()


def _let_optuna_create_its_tables(url: sa.URL) -> None:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage

    try:
        made = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine_arguments(url))
    except (StorageInternalError, RuntimeError) as error:  # RuntimeError: tables of another version
        raise unreachable(url, error) from None
    made.remove_session()
    made.engine.dispose()


def _has_optunas_tables(url: sa.URL, engine: sa.Engine) -> bool:
    """Whether Optuna's tables are complete: it creates them, and then a row with its version, in several transactions,
    which may have been interrupted. Raises InputError for tables of another program.
    """
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        there = set(inspector.get_table_names())
        for table in metadata.sorted_tables:
            columns = {column["name"] for column in inspector.get_columns(table.name)} if table.name in there else None
            if columns is not None and not columns.issuperset(table.columns.keys()):
                raise InputError(
                    f"--storage: {masked(url)} has a table '{table.name}' of another program; give hpo a database, or "
                    "a PostgreSQL schema, of its own"
                )
        complete = there.issuperset({*(table.name for table in metadata.sorted_tables), alembic_version.name})
        return complete and connection.scalar(sa.select(alembic_version)) is not None


def _lock_file(file: str) -> Path:
    """In the temporary folder, since a lock file next to the database would stay there forever."""
    digest = hashlib.sha256(str(Path(file).resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hpo-{os.getuid() if hasattr(os, 'getuid') else 0}-{digest}.lock"


def _engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url, **engine_arguments(url))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
    else:
        sa.event.listen(engine, "handle_error", _give_up_read_only_connections)
    return engine


def _give_up_read_only_connections(context: sa.engine.ExceptionContext) -> None:
    """After a failover, connections may lead to a read-only server and must be replaced."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True  # drops all connections of the pool


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """With WAL, NORMAL keeps every transaction atomic; only a power failure can undo the last ones."""
    connection.execute("PRAGMA synchronous=NORMAL")


def engine_arguments(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT_SECS}, "poolclass": NullPool}
    return {"connect_args": POSTGRESQL_CONNECT_ARGS, "pool_pre_ping": True, "pool_size": 2}


SQLITE_TIME = "%Y-%m-%d %H:%M:%f"


def database_now(connection: sa.Connection) -> sa.ColumnElement[Any]:
    """The time of the database's clock, in UTC."""
    if connection.dialect.name == "postgresql":
        return sa.literal_column("timezone('utc', clock_timestamp())")
    return sa.func.strftime(SQLITE_TIME, "now")


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes. On SQLite, it takes the write lock at once, since a transaction that reads first fails
    without waiting if another one writes in between. On PostgreSQL, it is aborted if its worker is suspended in the
    middle, which releases the locks that others wait for.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:  # LOCAL to the transaction, since a pooler shares the connection
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECS}s'")
        yield connection


def unreachable(url: sa.URL, error: Exception) -> HpoError:
    """The error for a database that cannot be opened: one line, without its password."""
    reason = first_line(getattr(error, "orig", None) or error.__cause__ or error)
    for secret in (url.password, *secrets_in(url).values()):
        if secret:  # only whole words, or a password `p` would change "option"
            reason = re.sub(rf"(?<!\w){re.escape(str(secret))}(?!\w)", "***", reason)
    return StorageError(f"--storage: {masked(url)} cannot be opened: {reason}")
