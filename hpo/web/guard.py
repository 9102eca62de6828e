"""Access control for the dashboard, as WSGI middleware.

A password, compared in constant time, gives full access; whoever gives wrong ones has to wait. Requests that another
site makes a browser send cannot change anything (CSRF), and host names that another site points here are refused (DNS
rebinding).
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

READING = ("GET", "HEAD")
OPEN = ("/healthz", "/readyz")
"""Paths that say nothing but whether the service works, which supervisors ask without a password."""
MOST_ATTEMPTS, ATTEMPTS_SECS = 10, 60.0
"""So many wrong passwords may come from an address in so many seconds."""
MOST_ADDRESSES = 10_000
HEADERS = [
    ("X-Frame-Options", "DENY"),  # against clickjacking
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


@dataclass(frozen=True)
class Guard:
    """password: without one (None), only requests to loopback names are answered; read_only: refuse all changes;
    public_origin: where browsers see the page, if a proxy does not forward that.
    """

    app: WsgiApp
    password: str | None
    read_only: bool
    public_origin: str | None = None
    attempts: dict[str, list[float]] = field(default_factory=dict)
    """When wrong passwords came in the last ATTEMPTS_SECS, by address."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refusal = self._refusal(environ)
        if refusal is not None:
            return _refuse(refusal, start_response)
        return self.app(environ, lambda status, headers, *rest: start_response(status, _safe(headers), *rest))

    def _refusal(self, environ: dict[str, Any]) -> tuple[str, str] | None:
        """(status, text) if the request is refused."""
        if environ["REQUEST_METHOD"] in READING and environ.get("PATH_INFO") in OPEN:
            return None
        if self.password is None and not is_loopback(_host_name(environ)):
            return "403 Forbidden", (
                "without a password this page is only served on localhost and loopback addresses such as 127.0.0.1; "
                "to use another name, such as a proxy's, set HPO_DASHBOARD_PASSWORD"
            )
        if self.password is not None and (refusal := self._asks_password(self.password, environ)) is not None:
            return refusal
        if environ["REQUEST_METHOD"] in READING:
            return None
        if self.read_only:
            return "403 Forbidden", "this dashboard is read-only"
        if _is_from_elsewhere(environ, self.public_origin):
            return "403 Forbidden", (
                "requests from other sites cannot change anything here; if this is your own proxy, let it forward the "
                "host name of the request (nginx: proxy_set_header Host $http_host;), or give --public-origin"
            )
        return None

    def _asks_password(self, password: str, environ: dict[str, Any]) -> tuple[str, str] | None:
        """The address is the one that connects, which behind a proxy is the proxy's: what a request says of where it
        comes from can be made up.
        """
        address, given, now = environ.get("REMOTE_ADDR", ""), environ.get("HTTP_AUTHORIZATION", ""), time.monotonic()
        recent = [at for at in self.attempts.get(address, ()) if now - at < ATTEMPTS_SECS]
        if given and len(recent) >= MOST_ATTEMPTS:
            return "429 Too Many Requests", f"too many wrong passwords; try again in {ATTEMPTS_SECS:g} s"
        if _knows(password, given):
            return None
        if given:
            if len(self.attempts) >= MOST_ADDRESSES:
                self.attempts.clear()
            self.attempts[address] = [*recent, now]
        return "401 Unauthorized", "a password is needed; any user name will do"


def _knows(password: str, authorization: str) -> bool:
    """`Basic` with any user name, or `Bearer`. Compares digests, so that timing does not even reveal the length."""
    scheme, _, credentials = authorization.partition(" ")
    given = credentials.strip().encode("latin-1", "replace")  # how WSGI represents bytes
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    spellings = (password.encode("utf-8"), password.encode("latin-1", "replace"))  # clients use either encoding
    digest = hashlib.sha256(given).digest()
    equal = [hmac.compare_digest(digest, hashlib.sha256(spelling).digest()) for spelling in spellings]
    return any(equal)


def _host_name(environ: dict[str, Any]) -> str:
    try:
        return urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return ""


def _is_from_elsewhere(environ: dict[str, Any], public_origin: str | None) -> bool:
    """Whether another site made a browser send this request.

    Browsers state where a request comes from; programs such as curl do not, and no site can make them send one.
    Sec-Fetch-Site, which pages cannot set, is reliable behind a proxy too. Browsers omit it without TLS: then the
    origin must match the Host header, as forwarded by the proxy. X-Forwarded-Host is ignored, since anyone can set it.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin not in (None, public_origin) and not _is_same_place(str(origin), environ.get("HTTP_HOST", ""))


def _is_same_place(origin: str, host: str) -> bool:
    """Whether an origin matches a Host header, which has no scheme and may include or omit the default port."""
    try:
        asked = urlsplit(origin)
        usual = {"http": 80, "https": 443}.get(asked.scheme)
        here = urlsplit(f"//{host}")
        return usual is not None and (asked.hostname, asked.port or usual) == (here.hostname, here.port or usual)
    except ValueError:
        return False


def _refuse(refusal: tuple[str, str], start_response: Callable[..., Any]) -> Iterable[bytes]:
    status, text = refusal
    headers = [("Content-Type", "text/plain; charset=utf-8"), *HEADERS]
    if status.startswith("401"):
        headers.append(("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"'))
    start_response(status, headers)
    return [f"{text}\n".encode()]


def _safe(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Removes optuna-dashboard's permission for all sites to read artifacts, and adds our headers."""
    return [header for header in headers if header[0].lower() != "access-control-allow-origin"] + HEADERS


def is_loopback(host: str) -> bool:
    """Whether this address, with or without brackets, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
