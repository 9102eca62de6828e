"""Image sets: every layout loads, every defect is named, and a cache is whole or absent."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save
from support.image_trees import IMAGES_PER_CLASS, WNIDS, write_class_folders, write_tiny_imagenet, zip_tree
from support.studies import make_spec

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.weights_file import weights_file


def load(tmp_path: Path, name: str = "tiny-imagenet", size: int = 32, **data: object) -> ImageSet:
    data = {"root": str(tmp_path / "root"), "validation_fraction": 0.5} | data
    return load_images(DataSpec.model_validate({"name": name} | data), size, seed=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path / "source")


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_tiny_imagenet_layout(tmp_path: Path, tree: Path, packed: bool) -> None:
    archive = zip_tree(tree, tmp_path / "tiny.zip") if packed else tree
    images = load(tmp_path, archive=str(archive))
    assert images.classes == WNIDS
    assert (len(images.train), len(images.tuning), len(images.test)) == (9, 9, 3)
    assert images.train.pixels.shape == (len(WNIDS) * IMAGES_PER_CLASS, 64, 64, 3)
    assert sorted([*images.train.rows, *images.tuning.rows]) == list(range(18))
    assert np.bincount(images.tuning.labels).tolist() == [3, 3, 3]
    assert images.test.labels.tolist() == [0, 1, 2]
    with Image.open(tree / "val" / "images" / "val_1.JPEG") as original:
        assert original.mode == "L", "the tree has grey images"
        assert np.array_equal(images.test.pixels[1], np.asarray(original.convert("RGB")))


def test_zip_and_folder_have_the_same_fingerprint_and_other_pixels_another(tmp_path: Path, tree: Path) -> None:
    from_zip = load(tmp_path, archive=str(zip_tree(tree, tmp_path / "tiny.zip")))
    assert load(tmp_path, archive=str(tree)).fingerprint == from_zip.fingerprint
    Image.new("RGB", (64, 64)).save(tree / "train" / "n01" / "images" / "n01_0.JPEG")
    assert load(tmp_path, archive=str(tree)).fingerprint != from_zip.fingerprint


def test_images_per_class_limits_training_after_the_tuning_images_are_taken(tmp_path: Path, tree: Path) -> None:
    whole, limited = load(tmp_path, archive=str(tree)), load(tmp_path, archive=str(tree), images_per_class=2)
    assert np.array_equal(limited.tuning.rows, whole.tuning.rows)
    assert np.bincount(limited.train.labels).tolist() == [2, 2, 2]
    assert set(limited.train.rows) <= set(whole.train.rows)


def test_an_image_has_one_key_in_all_splits(tmp_path: Path, tree: Path) -> None:
    images = load(tmp_path, archive=str(tree))
    keys = [*images.train.keys, *images.tuning.keys, *images.test.keys]
    assert len(set(keys)) == len(keys) == 21


def test_class_folders_and_split_folders(tmp_path: Path) -> None:
    images = load(tmp_path, "image-folder", archive=str(write_class_folders(tmp_path / "plain")))
    assert images.classes == ("cats", "dogs")
    assert images.train.pixels.shape[1:] == (32, 32, 3)
    assert (len(images.train) + len(images.tuning), len(images.test)) == (16, 4)
    write_class_folders(tmp_path / "split" / "train", each=6)
    write_class_folders(tmp_path / "split" / "val", each=2)
    packed = load(tmp_path, "image-folder", archive=str(zip_tree(tmp_path / "split", tmp_path / "split.zip")))
    assert (len(packed.train) + len(packed.tuning), len(packed.test)) == (12, 4)


def test_digits_are_rgb_at_the_size_asked_for(tmp_path: Path) -> None:
    images = load(tmp_path, "digits")
    assert images.train.pixels.shape[1:] == (32, 32, 3)
    assert len(images.train) + len(images.tuning) + len(images.test) == 1797


def test_this_machine_may_keep_its_images_elsewhere(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    zip_tree(tree, own / "tiny.zip")
    monkeypatch.setenv("HPO_DATA_ROOT", str(own))
    images = load(tmp_path, archive="/on/another/machine/tiny.zip")
    assert len(images.test) == 3
    assert list((own / "images").glob("*/meta.json"))
    assert not (tmp_path / "root").exists()
    (own / "weights.safetensors").write_bytes(save({"fc.bias": np.zeros(2)}))
    assert weights_file("/on/another/machine/weights.safetensors") == own / "weights.safetensors"


def truncate(archive: Path) -> None:
    os.truncate(archive, archive.stat().st_size // 2)


def remove_from(tree: Path, name: str) -> None:
    (tree / name).unlink()


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text instead of an image": (
        lambda tree: (tree / "train/n02/images/n02_3.JPEG").write_text("this is no image"),
        "train/n02/images/n02_3.JPEG cannot be decoded: not an image",
    ),
    "an image cut short": (
        lambda tree: os.truncate(tree / "train/n02/images/n02_3.JPEG", 200),
        "train/n02/images/n02_3.JPEG cannot be decoded",
    ),
    "no wnids.txt": (lambda tree: remove_from(tree, "wnids.txt"), "has no wnids.txt; TinyImageNet's layout is"),
    "no annotations": (lambda tree: remove_from(tree, "val/val_annotations.txt"), "has no"),
    "a missing validation image": (
        lambda tree: remove_from(tree, "val/images/val_1.JPEG"),
        "val_annotations.txt, line 2 names",
    ),
    "a label that is no class": (
        lambda tree: (tree / "val/val_annotations.txt").write_text("val_0.JPEG\tn09\n"),
        "line 1: 'n09' is no class of wnids.txt",
    ),
    "a class without images": (
        lambda tree: shutil.rmtree(tree / "train/n03/images"),
        "class n03 has no images in",
    ),
    "a class without validation images": (
        lambda tree: (tree / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\nval_1.JPEG\tn02\n"),
        "class n03 has no images in",
    ),
}


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named_in_one_line_and_a_mended_source_loads(
    tmp_path: Path, tree: Path, defect: str, packed: bool
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tree, whole / tree.name)
    spoil, expected = DEFECTS[defect]
    spoil(tree)
    archive = zip_tree(tree, tmp_path / "tiny.zip") if packed else tree
    with pytest.raises(DataError) as caught:
        load(tmp_path, archive=str(archive))
    message = str(caught.value)
    assert expected in message
    assert str(archive) in message
    assert "\n" not in message
    assert not list((tmp_path / "root" / "images").glob("*/")), "no cache is left behind"
    shutil.rmtree(tree)
    shutil.copytree(whole / tree.name, tree)
    archive = zip_tree(tree, tmp_path / "tiny.zip") if packed else tree
    assert len(load(tmp_path, archive=str(archive)).test) == 3


def test_a_truncated_zip_and_an_absent_path(tmp_path: Path, tree: Path) -> None:
    archive = zip_tree(tree, tmp_path / "tiny.zip")
    truncate(archive)
    with pytest.raises(DataError, match="not a whole zip file"):
        load(tmp_path, archive=str(archive))
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path, archive=str(tmp_path / "absent.zip"))
    with pytest.raises(DataError, match="two folders or more"):
        load(tmp_path, "image-folder", archive=str(write_class_folders(tmp_path / "one", ("cats",))))


LOAD_IN_A_PROCESS = """
import sys
from hpo.study_file.images import DataSpec
from hpo.vision.data.images import load_images
data = DataSpec(name="tiny-imagenet", archive=sys.argv[1], root=sys.argv[2], validation_fraction=0.5)
print("building", flush=True)
images = load_images(data, 64, 0, lambda what, done, total: print("built", flush=True))
print("loaded", len(images.train), len(images.test), flush=True)
"""


def start_loading(archive: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD_IN_A_PROCESS, str(archive), str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_build_once(tmp_path: Path, tree: Path) -> None:
    processes = [start_loading(tree, tmp_path / "root") for _ in range(4)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert all("loaded 9 3" in text for text in said)
    assert sum("built" in text for text in said) == 1


def test_a_build_that_was_killed_is_not_mistaken_for_a_finished_one(tmp_path: Path) -> None:
    classes = tuple(f"class-{i}" for i in range(10))
    source = write_class_folders(tmp_path / "source", classes, each=40)
    root, killed = tmp_path / "root", 0
    for pause in (0.02, 0.1):
        code = LOAD_IN_A_PROCESS.replace("tiny-imagenet", "image-folder")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += not list((root / "images").glob("image-folder-*/meta.json"))
    assert killed, "at least one build was killed before its end"
    images = load(tmp_path, "image-folder", size=64, archive=str(source))
    assert len(images.train) + len(images.tuning) + len(images.test) == 400
    assert not list((root / "images").glob(".building-*"))
    assert images.train.pixels[images.train.rows].any(axis=(1, 2, 3)).all(), "no image was left blank"


def test_the_specs_own_split_is_stratified_and_reproducible(tmp_path: Path) -> None:
    data = make_spec(data={"name": "digits", "root": str(tmp_path)}).data
    first, again, other = (load_images(data, 32, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.tuning.rows, again.tuning.rows)
    assert not np.array_equal(first.tuning.rows, other.tuning.rows)
    assert np.array_equal(first.test.rows, other.test.rows)
    assert np.ptp(np.bincount(first.tuning.labels)) <= 1


def test_fingerprints_of_plain_images_are_those_that_earlier_versions_gave(tmp_path: Path, tree: Path) -> None:
    """Studies of then go on: classes, then labels and pixels, of the training images and of the test images."""
    digest = hashlib.sha256(json.dumps(WNIDS).encode())
    train = [
        (path, label) for label, wnid in enumerate(WNIDS) for path in sorted((tree / "train" / wnid).rglob("*.J*"))
    ]
    test = [(tree / "val" / "images" / f"val_{label}.JPEG", label) for label in range(len(WNIDS))]
    for entries in (train, test):
        digest.update(np.array([label for _, label in entries], np.int64).tobytes())
        for path, _ in entries:
            with Image.open(path) as image:
                digest.update(np.asarray(image.convert("RGB")).tobytes())
    assert load(tmp_path, archive=str(tree)).fingerprint == digest.hexdigest()
