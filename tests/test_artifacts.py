"""The artifact store, a folder or a bucket: whole files or none, nothing outside it, clear words when unusable."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpo.artifacts import Artifacts, open_artifacts
from hpo.errors import InputError
from hpo.search.sql.whole_study import Kept
from hpo.search.study_files import remove_left


def test_what_was_written_is_read_back_until_it_is_removed(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "store"))
    assert artifacts.read("study/a") is None
    for content in (b"one", b"two" * 100_000):
        artifacts.write("study/a", content)
        assert artifacts.read("study/a") == content
    artifacts.remove("study/a")
    artifacts.remove("study/a")
    assert artifacts.read("study/a") is None
    assert list((tmp_path / "store" / "study").iterdir()) == []


def test_a_write_that_is_killed_leaves_the_last_one(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path))
    artifacts.write("a", b"whole")
    code = """
import os, signal, sys
from hpo.artifacts import Artifacts
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
Artifacts(sys.argv[1]).write("a", b"x" * 1_000_000)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert artifacts.read("a") == b"whole"
    (left,) = (path for path in tmp_path.iterdir() if path.name != "a")
    artifacts.write("ab", b"another's")
    artifacts.remove("a")
    assert not left.exists()
    left.write_bytes(b"x")
    artifacts.remove("a")
    assert [path.name for path in tmp_path.iterdir()] == ["ab"], "also when it never came to be"


def test_workers_of_other_users_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(0o027); from hpo.artifacts import Artifacts; Artifacts(sys.argv[1]).write('a', b'x')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid artifact_id"):
        Artifacts(str(tmp_path / "store")).write("../outside", b"x")
    assert not (tmp_path / "outside").exists()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    for location in ("file", "file/below", "file/far/below"):
        with pytest.raises(InputError, match=r"HPO_ARTIFACTS: .*/file is a file, not a folder; give a folder, s3:"):
            Artifacts(str(tmp_path / location)).check()
    with pytest.raises(InputError, match="HPO_ARTIFACTS: /proc/x cannot be written: No such file or directory"):
        Artifacts("/proc/x").check()
    for location in ("ftp://host/folder", "ftp://", "://", "S3://bucket"):
        with pytest.raises(InputError, match=r"HPO_ARTIFACTS: '.*://' is not supported; give a folder, s3:"):
            Artifacts(location)
    for location in ("s3://", "gs://", "s3:///prefix"):
        with pytest.raises(InputError, match=r"HPO_ARTIFACTS: '..://' names no bucket; give a folder, s3://bucket/…"):
            Artifacts(location)
    monkeypatch.setenv("HPO_ARTIFACTS", "")
    assert open_artifacts().location == "hpo-artifacts", "as if it were not set"
    Artifacts(str(tmp_path / "new")).check()
    assert os.listdir(tmp_path / "new") == []


class Bucket(BaseHTTPRequestHandler):
    """Answers as S3 does to whoever may get, put and delete, but not list."""

    kept: dict[str, bytes]
    readable = True

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_GET(self) -> None:
        if self.path in self.kept and self.readable:
            self._answer(200, self.kept[self.path])
        else:
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def do_DELETE(self) -> None:
        self.kept.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    class Mine(Bucket):
        kept: dict[str, bytes] = {}

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_MAX_ATTEMPTS": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield Mine
        server.shutdown()


def test_a_bucket_that_may_not_be_listed_denies_what_is_not_there(bucket: type[Bucket]) -> None:
    artifacts = Artifacts("s3://mine/below")
    artifacts.check()
    assert bucket.kept == {}
    assert artifacts.read("study/a") is None
    artifacts.write("study/a", b"one")
    assert artifacts.read("study/a") == b"one"
    assert list(bucket.kept) == ["/mine/below/study/a"]
    artifacts.remove("study/a")
    artifacts.remove("study/a")
    assert bucket.kept == {}


def test_a_bucket_that_may_not_be_read_is_said_at_the_start(bucket: type[Bucket]) -> None:
    bucket.readable = False
    with pytest.raises(InputError, match="HPO_ARTIFACTS: s3://mine can be written but not read"):
        Artifacts("s3://mine").check()


def test_what_a_study_left_in_a_bucket_goes_with_it(bucket: type[Bucket]) -> None:
    artifacts = Artifacts("s3://mine/below")
    for name in ("study-1/baseline.safetensors", "study-1/trial-3.checkpoint.safetensors", "picture", "other/x"):
        artifacts.write(name, b"content")
    remove_left(artifacts, Kept("study", None, "study-1", [0, 1, 2, 3], ["baseline.safetensors"], ["picture"]))
    assert list(bucket.kept) == ["/mine/below/other/x"]
