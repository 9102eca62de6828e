"""data.root: full, read-only, shared or not to be locked; and what a start with decoded images costs."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Hpo
from support.image_trees import write_class_folders, zip_tree

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data import cache
from hpo.vision.data.images import ImageSet, load_images


def load(tmp_path: Path, source: Path, size: int = 32) -> ImageSet:
    data = DataSpec(name="image-folder", root=str(tmp_path / "root"), archive=str(source), validation_fraction=0.5)
    return load_images(data, size, seed=0)


LOAD = """
import os, resource, sys
from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.images import load_images
root, source, largest_file = sys.argv[1:]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), -1))
try:
    images = load_images(DataSpec(name="image-folder", root=root, archive=source), 64, 0)
    print("loaded", len(images.test))
except DataError as error:
    print(error)
print([name for _, folders, files in os.walk(root) for name in folders + files if "image-folder" in name])
"""


def load_in_a_process(root: Path, source: Path, before: str = "", largest_file: int = 0) -> list[str]:
    """What is printed, and the folders of images that are there then. `before` is a shell's line, run as root of a
    name space of its own.
    """
    command = [sys.executable, "-c", LOAD, str(root), str(source), str(largest_file)]
    if before:
        inside = f'{before} && exec "$@"'
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside, "sh", *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def may_mount() -> bool:
    program = shutil.which("unshare")
    command = [program or "", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return program is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="this user may mount nothing")


@needs_mount
def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path: Path) -> None:
    source, root = write_class_folders(tmp_path / "source", each=30), tmp_path / "root"
    root.mkdir()
    said, left = load_in_a_process(root, source, f"mount -t tmpfs -o size=300k tmpfs {root}")
    assert said.startswith(f"no space in data.root: {root} has 0.3 MB free, 60 images of 64 px need 0.7 MB; set data.")
    assert left == "[]", "nothing is left behind"


def test_a_disk_that_fills_while_images_are_written_is_one_line(tmp_path: Path) -> None:
    source, root = write_class_folders(tmp_path / "source", each=30), tmp_path / "root"
    said, left = load_in_a_process(root, source, largest_file=100_000)  # as a quota on a disk with room
    assert said == f"data.root: {root} cannot be used: File too large; set data.root or HPO_DATA_ROOT"
    assert left == "[]", "nothing is left behind"


@needs_mount
def test_a_read_only_root_serves_what_it_has_and_says_no_to_the_rest(tmp_path: Path) -> None:
    source, root = write_class_folders(tmp_path / "source"), tmp_path / "root"
    assert load_in_a_process(root, source)[0] == "loaded 4"
    read_only = f"mount --bind {root} {root} && mount -o remount,ro,bind {root}"
    assert load_in_a_process(root, source, read_only)[0] == "loaded 4"
    other = write_class_folders(tmp_path / "other")
    said, _ = load_in_a_process(root, other, read_only)
    assert said.startswith(f"data.root: {root}")
    assert said.endswith("cannot be used: Read-only file system; set data.root or HPO_DATA_ROOT")


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(DataError, match=r"data\.root: .*/root cannot be used: Not a directory; set data\.root"):
        load(tmp_path, write_class_folders(tmp_path / "source"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_a_root_that_cannot_be_locked_is_named_at_once(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS without its lock daemon and Lustre without -o flock do, also where a lock file lies."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    source = write_class_folders(tmp_path / "source")
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "images" / ".lock").touch()
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", refuse)
        with pytest.raises(DataError, match=f"cannot be locked: {os.strerror(code)}; set HPO_DATA_ROOT"):
            load(tmp_path, source)
    load(tmp_path, source)


def test_a_lock_file_of_another_user_does(tmp_path: Path) -> None:
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "images" / ".lock").touch(0o444)
    assert len(load(tmp_path, write_class_folders(tmp_path / "source")).test) == 4


def write_over(source: Path) -> None:
    (source / "cats" / "0.png").write_bytes((source / "cats" / "1.png").read_bytes())


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new image": lambda source: shutil.copy(source / "cats" / "0.png", source / "cats" / "new.png"),
    "one less": lambda source: (source / "cats" / "0.png").unlink(),
    "another name": lambda source: (source / "cats" / "0.png").rename(source / "cats" / "last.png"),
    "another class": lambda source: (source / "cats" / "0.png").rename(source / "dogs" / "00.png"),
    "a new class": lambda source: shutil.copytree(source / "cats", source / "newts"),
    "another in its place": lambda source: (source / "cats" / "0.png").replace(source / "cats" / "1.png"),
}


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_noticed(tmp_path: Path, change: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOOKED_AT", 1000 if few else 10)
    source = write_class_folders(tmp_path / "source")
    before = load(tmp_path, source).fingerprint
    assert load(tmp_path, source).fingerprint == before
    time.sleep(0.02)  # times of files are coarser than the clock
    CHANGES[change](source)
    assert load(tmp_path, source).fingerprint != before


def test_only_among_few_files_one_that_is_written_over_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_class_folders(tmp_path / "source")
    before = load(tmp_path, source).fingerprint
    write_over(source)
    assert load(tmp_path, source).fingerprint != before
    monkeypatch.setattr(cache, "LOOKED_AT", 10)
    known = load(tmp_path, source).fingerprint
    write_over(source)
    (source / "dogs" / "0.png").write_bytes((source / "dogs" / "1.png").read_bytes())
    assert load(tmp_path, source).fingerprint == known
    time.sleep(0.02)
    os.utime(source / "dogs")
    assert load(tmp_path, source).fingerprint != known


def test_a_start_looks_at_no_file_of_a_large_folder(tmp_path: Path) -> None:
    """20,000 files, which may be on a network's disk; counted by the kernel."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source = write_class_folders(tmp_path / "source")
    for number in range(20_000):
        os.link(source / "cats" / "0.png", source / "cats" / f"{number}.txt")
    load(tmp_path, source, size=64)
    log = tmp_path / "calls"
    command = ["strace", "-f", "-o", str(log), "-e", "trace=%file"]
    done = subprocess.run([*command, sys.executable, "-c", LOAD, str(tmp_path / "root"), str(source), "0"])
    assert done.returncode == 0
    looked_at = [line for line in log.read_text().splitlines() if str(source) in line]
    assert 0 < len(looked_at) < 50, looked_at[:60]


def test_a_zip_that_changed_is_noticed(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source")
    archive = zip_tree(source, tmp_path / "source.zip")
    before = load(tmp_path, archive).fingerprint
    write_over(source)
    assert load(tmp_path, zip_tree(source, archive)).fingerprint != before


def test_decoded_images_are_removed_and_made_again_and_nothing_else_goes(tmp_path: Path, hpo_here: Hpo) -> None:
    source = write_class_folders(tmp_path / "photos", each=6)
    expected = load(tmp_path, source)
    root = tmp_path / "root"
    (root / "tiny-imagenet-200.zip").write_bytes(b"downloaded")
    (root / "images" / ".building-digits-x-1").mkdir()
    before = expected.tuning.pixels[expected.tuning.rows]
    cleaned = hpo_here("clean", "--cache", HPO_DATA_ROOT=str(root))
    assert cleaned.returncode == 0
    assert cleaned.stderr.startswith(f"2 image sets removed from {root}/images, 0.0 MB")
    assert sorted(path.name for path in root.rglob("*")) == [".lock", "images", "tiny-imagenet-200.zip"]
    assert (expected.tuning.pixels[expected.tuning.rows] == before).all(), "who has them open goes on"
    assert load(tmp_path, source).fingerprint == expected.fingerprint
    assert "give --cache or --artifacts" in hpo_here("clean").stderr
    assert hpo_here("clean", "--cache", "--root", str(tmp_path / "absent")).stderr.startswith("0 image sets removed")
