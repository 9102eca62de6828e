"""Compression of large answers, as WSGI middleware: JSON of ten thousand trials is 24 MB, a tenth of that by gzip."""

import gzip
from collections.abc import Callable, Iterable
from typing import Any

from hpo.web.guard import WsgiApp

SMALL_BYTES = 10_000
LEVEL = 1
"""0.15 s for 24 MB; the levels above take three times as long for a quarter less."""


def compressed(app: WsgiApp) -> WsgiApp:
    """The application, whose JSON is compressed for clients that accept it."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        started: list[Any] = []
        body = app(environ, lambda *arguments: started.extend(arguments))
        status, headers = started[:2]
        types = [value for name, value in headers if name.lower() == "content-type"]
        if types[:1] and types[0].startswith("application/json") and "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            content = b"".join(body)
            headers = [*headers, ("Vary", "Accept-Encoding")]
            if len(content) > SMALL_BYTES:
                content = gzip.compress(content, LEVEL, mtime=0)
                kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
                headers = [*kept, ("Content-Encoding", "gzip"), ("Content-Length", str(len(content)))]
            body = [content]
        start_response(status, headers, *started[2:])
        return body

    return answer
