"""The dashboard below a path, such as https://example.org/hpo/dashboard, as WSGI middleware.

optuna-dashboard 0.21 knows its own paths only: they are replaced in its page and in its program, which is refused if it
is not as expected.
"""

import gzip
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from hpo.errors import InputError
from hpo.web.guard import OPEN, WsgiApp

PAGE, PROGRAM = "index.html", "public/bundle.js"
PROGRAM_PATH = "/static/bundle.js"
OWN_PATHS = {
    PAGE: ('src="{}/static/',),
    PROGRAM: (
        'url_prefix:"{}/dashboard"',
        "${{this.baseURL}}{}/api/",
        "`{}/csv/${{",
        *("`{}/artifacts/${{", "({}/artifacts/${{", "}}{}/artifacts/${{"),
    ),
}
"""By file, what stands around a path of the dashboard's own, which {} is put before."""


def below(base: str, app: WsgiApp) -> WsgiApp:
    """The application, which then answers below `base` only (`/hpo`, or "" for no change), and what supervisors ask.

    Raises InputError if this optuna-dashboard cannot be served so.
    """
    if not base:
        return app
    page, program = _moved(PAGE, base).encode(), gzip.compress(_moved(PROGRAM, base).encode(), 6, mtime=0)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = environ.get("PATH_INFO", "")
        path = asked.removeprefix(base)
        if asked in OPEN:
            return app(environ, start_response)
        if path == asked or path[:1] not in ("", "/"):
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"the dashboard is at {base}/dashboard\n".encode()]
        environ = {**environ, "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + base, "PATH_INFO": path}
        began: list[Any] = []
        body = app(environ, lambda *arguments: began.extend(arguments))
        status, headers = began[:2]
        kept = [(name, value) for name, value in headers if name.lower() not in OF_BODY]
        if status.startswith("30") and path in ("", "/"):
            kept = [(name, value) for name, value in kept if name.lower() != "location"]
            headers = [*kept, ("Location", f"{base}/dashboard")]
        elif status.startswith("200") and (path == "/dashboard" or path.startswith("/dashboard/")):
            headers, body = [*kept, ("Content-Length", str(len(page)))], [page]
        elif status.startswith("200") and path == PROGRAM_PATH:
            headers, body = [*kept, ("Content-Encoding", "gzip"), ("Content-Length", str(len(program)))], [program]
        start_response(status, headers, *began[2:])
        return body

    return answer


OF_BODY = ("content-length", "content-encoding", "last-modified", "etag", "accept-ranges")


@cache
def _moved(file: str, base: str) -> str:
    """A file of optuna-dashboard's, with `base` before its own paths."""
    text = (files("optuna_dashboard") / file).read_text(encoding="utf-8")
    for pattern in OWN_PATHS[file]:
        if pattern.format("") not in text:
            raise InputError("--base-path: the installed optuna-dashboard cannot be served below a path")
        text = text.replace(pattern.format(""), pattern.format(base))
    return text
