"""Serves the dashboard with cheroot, a production WSGI server, in this process; with TLS if given a certificate."""

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import click
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from optuna.storages import RDBStorage

from hpo.artifacts import Artifacts, open_artifacts
from hpo.errors import InputError
from hpo.search.sql.storage import engine_arguments, open_engine
from hpo.search.sql.url import parse_url
from hpo.search.sql.whole_study import locations
from hpo.search.study_files import is_elsewhere, location_in_full
from hpo.stopping import Stopped, stop_on_signals
from hpo.web.base_path import below
from hpo.web.dashboard import build_app
from hpo.web.guard import Guard, is_loopback

PASSWORD_VARIABLE = "HPO_DASHBOARD_PASSWORD"  # noqa: S105 (the variable's name)
EXAMPLE_PASSWORD = "change-me"  # noqa: S105 (of .env.example, which is refused)
FEWEST_CHARACTERS = 8
THREADS = 10
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Address:
    """Where to listen, and the paths of the certificate and its key (both or neither).

    base_path: what comes before all paths, "" or as in /hpo; public_origin: of the page as browsers see it, where a
    proxy does not tell.
    """

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    base_path: str = ""
    public_origin: str | None = None


def serve(storage: str, address: Address, password_file: str | None, read_only: bool) -> None:
    """Serves until a signal arrives. Raises InputError for an address other than loopback without a password."""
    url = parse_url(storage)
    password = read_password(password_file)
    if password is None and not is_loopback(address.host):
        could = "see everything" if read_only else "see and change everything"
        raise InputError(
            f"--host {address.host}: other machines could {could}; set {PASSWORD_VARIABLE} or give "
            "--password-file, or keep the default host, 127.0.0.1"
        )
    open_engine(url).dispose()  # reports problems with the storage and updates the views
    rdb = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine_arguments(url))
    artifacts = open_artifacts()
    listen_on = address.host.removeprefix("[").removesuffix("]")
    guarded = Guard(build_app(rdb, artifacts, address.base_path), password, read_only, address.public_origin)
    server = Server((listen_on, address.port), below(address.base_path, guarded), THREADS)
    server.server_name = "hpo"
    if address.certificate is not None:
        server.ssl_adapter = _tls(address)
    _listen(server, address)
    _announce(server, address, password, read_only)
    _warn_of_figures_elsewhere(rdb, artifacts)
    stop_on_signals(exit_for_certain=True)  # a signal may arrive where the server holds a lock that its stop needs
    try:
        server.serve()
    except Stopped:
        click.echo("dashboard stopped", err=True)
    finally:
        server.stop()


def read_password(file: str | None) -> str | None:
    """From the file if one is given, else from the environment; None if neither is set. Raises InputError."""
    source = f"--password-file {file}" if file else PASSWORD_VARIABLE
    if file is not None:
        try:
            password = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: cannot be read: {error}") from None
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    else:
        return None
    if password == EXAMPLE_PASSWORD:
        raise InputError(f"{source}: '{EXAMPLE_PASSWORD}' is the example's password; choose your own")
    if len(password.strip()) < FEWEST_CHARACTERS:
        raise InputError(f"{source}: a password needs at least {FEWEST_CHARACTERS} characters")
    return password


def _tls(address: Address) -> BuiltinSSLAdapter:
    try:
        return BuiltinSSLAdapter(address.certificate, address.key)
    except (OSError, ssl.SSLError, ValueError) as error:
        given = f"--tls-certificate {address.certificate}, --tls-key {address.key}"
        raise InputError(f"{given}: cannot be used together: {error}") from None


def _listen(server: Server, address: Address) -> None:
    try:
        server.prepare()
    except OSError as error:
        reason = re.sub(r".*\[Errno \d+\] ", "", str(error).splitlines()[0]).rstrip(")")
        raise InputError(f"--port {address.port}: cannot listen on {address.host}: {reason}; choose another") from None


def _announce(server: Server, address: Address, password: str | None, read_only: bool) -> None:
    scheme = "https" if address.certificate else "http"
    host = f"[{address.host}]" if ":" in address.host and "[" not in address.host else address.host
    may = "read-only" if read_only else "with access comes the right to change studies (see --read-only)"
    who = "password required, with any user name" if password else "no password required"
    page = f"{scheme}://{host}:{server.bind_addr[1]}{address.base_path}/dashboard"
    click.echo(f"dashboard on {page}: {who}; {may}. Press Ctrl-C to stop", err=True)
    if not address.certificate and not is_loopback(address.host):
        click.echo(
            "warning: without TLS the password and all pages can be read on the network; give --tls-certificate and "
            "--tls-key, or use a proxy with TLS",
            err=True,
        )


def _warn_of_figures_elsewhere(storage: RDBStorage, artifacts: Artifacts) -> None:
    """Warns of studies whose workers use another artifact store."""
    for location, names in locations(storage.engine).items():
        if is_elsewhere(location, artifacts):
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            click.echo(
                f"warning: figures of {', '.join(names[:NAMES_SHOWN])}{more} are in {location}, but this dashboard "
                f"reads {location_in_full(artifacts.location)}: start it with HPO_ARTIFACTS={location}",
                err=True,
            )
