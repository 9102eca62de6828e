"""URLs of databases: parsing and checking them, and showing them without passwords."""

import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from hpo.errors import InputError

DEFAULT_STORAGE = "sqlite:///hpo.db"
SQLITE_NEEDED = (3, 38)
"""The operator -> needs 3.38, RETURNING 3.35."""


def parse_url(text: str) -> sa.URL:
    """Parses sqlite:///file.db or postgresql://user:password@host/database. Raises InputError without a password."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise InputError(
            "--storage: not a database URL; give sqlite:///file.db or postgresql://user:password@host/database"
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise InputError(f"--storage: '{url.drivername}' is not supported; give sqlite:///… or postgresql://…")
    if url.get_backend_name() == "sqlite":
        _check_sqlite_version()
        _check_sqlite_file(url.database)
    elif "@" in (url.database or "") + (url.host or ""):  # the text before it may be a password, so nothing is shown
        raise InputError(
            "--storage: the user name or password holds a character that ends it in a URL; write @ as %40, / as %2F, "
            ": as %3A, # as %23, ? as %3F, % as %25"
        )
    return url


def _check_sqlite_version() -> None:
    if sqlite3.sqlite_version_info < SQLITE_NEEDED:
        raise InputError(
            f"--storage: hpo needs SQLite {'.'.join(map(str, SQLITE_NEEDED))} or later, this Python has "
            f"{sqlite3.sqlite_version}; use another Python, or PostgreSQL"
        )


def _check_sqlite_file(file: str | None) -> None:
    if file in (None, "", ":memory:"):
        raise InputError("--storage: workers share the database, so it must be a file: sqlite:///file.db")
    if Path(file).is_dir() or not Path(file).parent.is_dir():
        raise InputError(f"--storage: {file} must be a file in a folder that exists")


def masked(url: sa.URL) -> str:
    """The URL for display: without its password, also if that is in the query."""
    url = url.update_query_dict(dict.fromkeys(secrets_in(url), "***"))
    return url.render_as_string(hide_password=True).replace("postgresql+psycopg://", "postgresql://")


def sqlite_file(url: sa.URL) -> str | None:
    """The database's file; None if it is not SQLite."""
    return url.database if url.get_backend_name() == "sqlite" else None


def secrets_in(url: sa.URL) -> dict[str, str]:
    """The parameters of the query that hold passwords."""
    return {key: str(value) for key, value in url.query.items() if "pass" in key.lower()}
