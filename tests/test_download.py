"""The download: from a real HTTP server, broken off, resumed, tampered with."""

import contextlib
import errno
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.errors import DataError
from hpo.vision.data.download import download_tiny_imagenet

CONTENT = bytes(range(256)) * 20_000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; breaks off after `break_after` bytes; `ranges` as asked, or not at all."""

    break_after: int | None = None
    resumes = True
    ranges: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.resumes else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) if self.server.break_after is None else start + self.server.break_after
        with contextlib.suppress(ConnectionError):  # of who has seen enough
            self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.ranges = []
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def download(server: Server, root: Path, md5: str = MD5) -> Path:
    url = f"http://127.0.0.1:{server.server_port}/tiny.zip"
    return download_tiny_imagenet(root, url=url, size=len(CONTENT), md5=md5)


def test_a_broken_download_is_resumed_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.break_after = 1_000_000
    with pytest.raises(DataError, match="try again to resume"):
        download(server, tmp_path)
    server.break_after = None
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert len(server.ranges) == 2, "what is there is not fetched again"


def test_a_server_that_cannot_resume_makes_it_start_again(server: Server, tmp_path: Path) -> None:
    server.break_after, server.resumes = 1_000_000, False
    with pytest.raises(DataError):
        download(server, tmp_path)
    server.break_after = None
    assert download(server, tmp_path).read_bytes() == CONTENT


def test_another_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the expected file"):
        download(server, tmp_path, md5="0" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200.zip.lock"]
    assert download(server, tmp_path).read_bytes() == CONTENT


def test_no_network_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not be downloaded .*give data\.archive") as caught:
        download_tiny_imagenet(tmp_path, url="http://127.0.0.1:9/tiny.zip")
    assert "\n" not in str(caught.value)


def test_a_zip_that_is_there_needs_no_lock(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be another's, read-only, or without locks."""
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(CONTENT)
    monkeypatch.setattr("fcntl.flock", None)
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200.zip"]


def test_a_disk_that_cannot_hold_the_zip_is_named_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no space in data\.root: .* need 1,000,000,000,000\.0 MB; set data\.root"):
        download_tiny_imagenet(tmp_path, url=f"http://127.0.0.1:{server.server_port}/tiny.zip", size=10**18)
    assert server.ranges == []


def test_what_a_disk_refuses_is_not_blamed_on_the_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"no space in data\.root: .*: No space left on device; set data\.root"):
        download(server, tmp_path)


def test_a_root_without_locks_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"data\.root: .* cannot be locked: No locks available; set HPO_DATA_ROOT"):
        download(server, tmp_path)
