"""`hpo new`: what it writes is a study file, whatever images and files are called, and `hpo run` takes it as it is."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Hpo
from support.image_trees import write_class_folders, write_tiny_imagenet, zip_tree
from test_image_cache import may_mount

from hpo.cli.new_study import Look, digits_study, image_study, look_at, write_study_file
from hpo.errors import InputError
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec
from hpo.vision.data.images import load_images

QUICK = ("--set", "training.epochs=1", "--set", "budget=2")


def test_a_study_of_ones_own_images_in_two_commands(hpo_here: Hpo, tmp_path: Path) -> None:
    """Of the fewest images that can be: one of each class to learn from, one to tune on, one to test on."""
    write_class_folders(tmp_path / "photos of\tmine", ("cats", "dogs"), each=3)
    wrote = hpo_here("new", "birds.toml", "--images", "photos of\tmine/")
    assert wrote.returncode == 0, wrote.stderr
    assert wrote.stderr.endswith("Next: hpo run birds.toml\n")
    ran = hpo_here("run", "birds.toml", "--set", "model.weights=none", *QUICK)  # no network here
    assert ran.returncode == 0, ran.stderr
    status = json.loads(hpo_here("status", "birds", "--json").stdout)
    assert status["finished"] == 2


@pytest.mark.parametrize("source", ["zip", "tiny-imagenet"])
def test_zips_and_tinyimagenets_layout_are_told_apart(tmp_path: Path, source: str) -> None:
    tree = write_class_folders(tmp_path / "photos") if source == "zip" else write_tiny_imagenet(tmp_path)
    images = zip_tree(tree, tmp_path / "photos.zip") if source == "zip" else tree
    write_study_file(tmp_path / "s.toml", images)
    spec = load_spec(tmp_path / "s.toml")
    assert spec.data.name == ("image-folder" if source == "zip" else source)
    data = spec.data.model_copy(update={"root": str(tmp_path / "root")})
    assert len(load_images(data, spec.model.input_size, spec.seed).tuning) >= 2


def test_a_study_of_the_digits_in_two_commands(hpo_here: Hpo, tmp_path: Path) -> None:
    """And with logs in a folder of one's own, where the usual one cannot be made."""
    assert "digits" in hpo_here("new", "digits.toml").stderr
    (tmp_path / "hpo-logs").write_text("in the way")
    few = ("--set", "data.images_per_class=10", "--set", "data.validation_fraction=0.05", *QUICK)
    refused = hpo_here("run", "digits.toml", *few)
    assert refused.returncode == 2
    assert "the logs' folder hpo-logs/digits cannot be written" in refused.stderr
    assert "set HPO_LOGS" in refused.stderr
    assert "Traceback" not in refused.stderr
    ran = hpo_here("run", "digits.toml", *few, "--workers", "1", HPO_LOGS="elsewhere")
    assert ran.returncode == 0, ran.stderr
    assert "Best configurations of digits" in ran.stdout
    assert list((tmp_path / "elsewhere" / "digits").glob("*.log"))


def loaded(folder: Path, text: str) -> Spec:
    file = folder / "written.toml"
    file.write_bytes(text.encode())
    return load_spec(file)


file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120)
class_sizes = st.dictionaries(st.text(min_size=1, max_size=9), st.integers(2, 100_000), min_size=2, max_size=12)


@settings(deadline=None)
@given(
    file=file_names,
    folder=file_names,
    kind=st.sampled_from(["tiny-imagenet", "image-folder"]),
    train=class_sizes,
    test=st.integers(1, 10**6),
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=9).map(sorted),
)
def test_whatever_images_and_files_are_called_it_is_a_study_file(
    tmp_path_factory: pytest.TempPathFactory,
    file: str,
    folder: str,
    kind: str,
    train: dict[str, int],
    test: int,
    sizes: list[int],
) -> None:
    work = tmp_path_factory.getbasetemp()
    images = Path("/somewhere") / folder
    spec = loaded(work, image_study(Path(file), Look(kind, images, train, test, sizes)))  # type: ignore[arg-type]
    assert spec.data.archive == str(images.resolve())
    assert spec.search.searched
    assert loaded(work, digits_study(Path(file))).data.name == "digits"


def test_what_is_written_fits_what_was_found(tmp_path: Path) -> None:
    images = write_class_folders(tmp_path / "photos", ("a", "b", "c"), each=10)
    found = look_at(images)
    assert (found.kind, found.train, found.test) == ("image-folder", {"a": 8, "b": 8, "c": 8}, 6)
    assert 24 <= found.sizes[0] <= found.sizes[-1] <= 60
    text = image_study(tmp_path / "s.toml", found)
    assert "3 classes with 8 training images each, 6 test images" in text
    assert loaded(tmp_path, text).model.input_size == 32
    many = Look("image-folder", images, {"a": 50_000, "b": 40_000}, 10_000, [180, 224, 4000])
    spec = loaded(tmp_path, image_study(tmp_path / "s.toml", many))
    assert (spec.model.input_size, spec.data.validation_fraction) == (224, 0.1)


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("mine")
    (tmp_path / "link.toml").symlink_to("nowhere")
    for name in ("mine.toml", "link.toml"):
        with pytest.raises(InputError, match=r"\.toml already exists; choose another name or remove it first"):
            write_study_file(tmp_path / name, None)
    assert (tmp_path / "mine.toml").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write_study_file(tmp_path / "absent" / "s.toml", None)


WRITE = (
    "import sys; from pathlib import Path; from hpo.cli.new_study import *; write_study_file(Path(sys.argv[1]), None)"
)


@pytest.mark.skipif(not may_mount(), reason="needs to mount")
def test_a_full_disk_is_left_without_half_a_file(tmp_path: Path) -> None:
    full = (
        'mount -t tmpfs -o size=4k tmpfs "$1" && head -c 4096 /dev/zero > "$1/full"; "$2" -c "$3" "$1/s.toml"; ls "$1"'
    )
    given = ["unshare", "--map-root-user", "--mount", "sh", "-c", full, "sh", str(tmp_path), sys.executable, WRITE]
    ran = subprocess.run(given, capture_output=True, text=True)
    assert "s.toml cannot be written: No space left on device" in ran.stderr
    assert ran.stdout.split() == ["full"]


def test_what_cannot_be_used_of_images_is_said_and_left_out(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "photos", each=9)
    (source / "cats" / "0.png").write_bytes(b"no image")
    (source / "dogs" / "1.heic").touch()
    said = write_study_file(tmp_path / "s.toml", source)
    assert "files of unsupported types skipped: 1 .heic; cannot be decoded: cats/0.png (not an image)" in said
    assert load_spec(tmp_path / "s.toml").data.bad_images == "skip"


def test_images_that_make_no_study_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    few = write_class_folders(tmp_path / "few", each=2)
    damaged = write_class_folders(tmp_path / "damaged", each=4)
    for image in damaged.rglob("*.png"):
        image.write_bytes(image.read_bytes()[:20])
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    undecodable = tmp_path / os.fsdecode(b"caf\xe9")
    write_class_folders(undecodable, each=5)
    for images, expected in {
        tmp_path / "absent": "--images: .*absent does not exist",
        few: "--images: class cats has only one training image; at least 2 are needed",
        damaged: "--images: .*damaged: none of its images can be decoded",
        tmp_path / "empty.zip": "--images: ",
        undecodable: "--images: the path must be valid UTF-8",
    }.items():
        with pytest.raises(InputError, match=expected):
            write_study_file(tmp_path / "s.toml", images)
        assert not (tmp_path / "s.toml").exists()
