"""Who may see the dashboard, and who may change something: the guard in front of a page that always answers."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.web.guard import Guard, is_loopback

PASSWORD = "correct horse, battery/staple: ü"  # noqa: S105
CHANGING = ["POST", "PUT", "DELETE", "PATCH"]


def ask(
    guard: Guard, method: str = "GET", path: str = "/", address: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request to localhost."""
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": "localhost:8080", "REMOTE_ADDR": address}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    answered: list[Any] = []

    def start_response(status: str, given: list[tuple[str, str]]) -> None:
        answered.append((int(status[:3]), dict(given)))

    body = b"".join(guard(environ, start_response))
    return (*answered[0], body)


def page(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Access-Control-Allow-Origin", "*")])
    return [b"the page"]


def basic(password: str, user: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


OPEN = Guard(page, None, read_only=False)


def closed() -> Guard:
    """A new one, which nobody has given a wrong password."""
    return Guard(page, PASSWORD, read_only=False)


@given(st.text().filter(lambda text: text != PASSWORD), st.sampled_from(["Basic", "bearer", "Digest", ""]))
def test_without_the_password_there_is_nothing_but_401(guess: str, scheme: str) -> None:
    for credentials in (guess, base64.b64encode(f"me:{guess}".encode()).decode(), f"me:{guess}"):
        status, headers, body = ask(closed(), authorization=f"{scheme} {credentials}")
        assert status == 401
        assert b"the page" not in body
        assert headers["WWW-Authenticate"].startswith("Basic")


def test_the_password_opens_it_under_any_user_name_or_as_a_token() -> None:
    as_utf_8 = PASSWORD.encode().decode("latin-1")  # a header's bytes, as WSGI gives them
    in_latin_1 = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode("latin-1")).decode()
    for authorization in (basic(PASSWORD), basic(PASSWORD, ""), in_latin_1, f"Bearer {PASSWORD}", f"Bearer {as_utf_8}"):
        assert ask(closed(), authorization=authorization)[0] == 200
        assert ask(closed(), "DELETE", authorization=authorization)[0] == 200
    assert ask(closed(), authorization=basic(PASSWORD), host="elsewhere.example")[0] == 200


@pytest.mark.parametrize("method", CHANGING)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://[broken"},
    ],
)
def test_other_sites_change_nothing(method: str, headers: dict[str, str]) -> None:
    assert ask(OPEN, method, **headers)[0] == 403
    assert ask(closed(), method, authorization=basic(PASSWORD), **headers)[0] == 403


@pytest.mark.parametrize("headers", [{}, {"origin": "http://localhost:8080", "sec_fetch_site": "same-origin"}])
def test_the_page_itself_and_programs_change_what_they_like(headers: dict[str, str]) -> None:
    assert all(ask(OPEN, method, **headers)[0] == 200 for method in CHANGING)


def test_read_only_refuses_everything_that_changes_something() -> None:
    guard = Guard(page, PASSWORD, read_only=True)
    assert all(ask(guard, method, authorization=basic(PASSWORD))[0] == 403 for method in [*CHANGING, "PROPFIND"])
    assert all(ask(guard, method, authorization=basic(PASSWORD))[0] == 200 for method in ["GET", "HEAD"])


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8080", "", "[::1", "127.0.0.1.evil.example"])
def test_without_a_password_no_other_name_may_point_here(host: str) -> None:
    assert ask(OPEN, host=host)[0] == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2:8080", "127.255.0.9:1", "[::1]", "[::1]:8080", "LOCALHOST:80", "localhost.:8080"]
)
def test_without_a_password_every_loopback_address_is_answered(host: str) -> None:
    assert ask(OPEN, host=host)[0] == 200
    assert ask(OPEN, "DELETE", host=host, origin=f"http://{host.lower()}")[0] == 200


def test_behind_a_proxy_that_keeps_the_name_for_itself_the_browsers_own_word_counts() -> None:
    outside = {"authorization": basic(PASSWORD), "host": "127.0.0.1:8080", "origin": "https://hpo.example.org"}
    assert ask(closed(), "DELETE", **outside, sec_fetch_site="same-origin")[0] == 200
    assert ask(closed(), "DELETE", **outside, sec_fetch_site="cross-site")[0] == 403
    for forged in ({}, {"x_forwarded_host": "hpo.example.org"}, {"forwarded": "host=hpo.example.org"}):
        status, _, body = ask(closed(), "DELETE", **outside, **forged)
        assert status == 403
        assert b"proxy_set_header Host $http_host" in body


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://hpo.example.org", "hpo.example.org", 200),
        ("https://hpo.example.org", "hpo.example.org:443", 200),
        ("http://hpo.example.org", "hpo.example.org:80", 200),
        ("http://hpo.example.org:8080", "hpo.example.org:8080", 200),
        ("http://hpo.example.org:8080", "hpo.example.org", 403),
        ("http://hpo.example.org", "hpo.example.org:443", 403),
        ("http://hpo.example.org.evil.example", "hpo.example.org", 403),
        ("https://hpo.example.org:port", "hpo.example.org", 403),
    ],
)
def test_a_proxy_that_passes_the_name_on_needs_nothing_else(origin: str, host: str, status: int) -> None:
    assert ask(closed(), "POST", authorization=basic(PASSWORD), origin=origin, host=host)[0] == status


def test_no_site_may_frame_or_read_it() -> None:
    _, headers, _ = ask(OPEN)
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers


def test_what_is_loopback() -> None:
    loopback = ("127.0.0.1", "127.3.2.1", "::1", "[::1]", "0:0:0:0:0:0:0:1", "localhost", "Localhost")
    assert all(is_loopback(host) for host in loopback)
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "", "[::]", "192.168.0.3", "example.org"))  # noqa: S104


def test_whoever_gives_wrong_passwords_has_to_wait_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("hpo.web.guard.time.monotonic", lambda: clock[0])
    guard = closed()
    for _ in range(10):
        assert ask(guard, authorization=basic("wrong"))[0] == 401
    assert ask(guard, authorization=basic("wrong"))[0] == 429
    assert ask(guard, authorization=basic(PASSWORD))[0] == 429, "it may have been guessed"
    assert ask(guard)[0] == 401, "a browser asks without one first"
    assert ask(guard, address="10.0.0.2", authorization=basic(PASSWORD))[0] == 200
    clock[0] += 61
    assert ask(guard, authorization=basic(PASSWORD))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_supervisors_need_no_password(path: str) -> None:
    assert ask(closed(), path=path)[0] == 200
    assert ask(closed(), path=f"{path}/../api/studies")[0] == 401
    assert ask(closed(), "POST", path=path)[0] == 401
