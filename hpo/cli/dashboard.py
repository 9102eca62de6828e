"""`hpo dashboard`."""

import re

import click

from hpo.cli.options import storage_option
from hpo.errors import InputError


@click.command()
@storage_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any but loopback needs a password."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free port.")
@click.option(
    "--password-file", type=click.Path(), help="File that contains the password. Also HPO_DASHBOARD_PASSWORD."
)
@click.option("--read-only", is_flag=True, help="Refuse all changes to studies.")
@click.option("--tls-certificate", type=click.Path(), help="Certificate (PEM), to serve HTTPS.")
@click.option("--tls-key", type=click.Path(), help="The certificate's private key (PEM).")
@click.option("--base-path", default="", metavar="/PATH", help="Serve below this path, as a proxy forwards it.")
@click.option(
    "--public-origin",
    metavar="URL",
    help="What browsers see before the path (https://example.org), for a proxy that does not forward the host's name.",
)
def dashboard(
    storage: str,
    host: str,
    port: int,
    password_file: str | None,
    read_only: bool,
    tls_certificate: str | None,
    tls_key: str | None,
    base_path: str,
    public_origin: str | None,
) -> None:
    """Serve optuna-dashboard, with figures of good trials.

    The figures are read from HPO_ARTIFACTS, where the workers store them.
    """
    from hpo.web.server import Address, serve

    if (tls_certificate is None) != (tls_key is None):
        raise InputError("--tls-certificate and --tls-key: give both or neither")
    if base_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", base_path):
        raise InputError(f"--base-path: {base_path} must be like /hpo: letters, digits and . _ ~ - after each slash")
    if public_origin and not re.fullmatch(r"https?://[^/\s]+", public_origin):
        raise InputError(f"--public-origin: {public_origin} must be like https://example.org, without a path")
    address = Address(host, port, tls_certificate, tls_key, base_path, public_origin)
    serve(storage, address, password_file, read_only)
