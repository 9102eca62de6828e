"""The artifact store on a folder: whole files or none, nothing outside it, and clear words when it cannot be used."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.artifacts import Artifacts, open_artifacts
from hpo.errors import InputError


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
