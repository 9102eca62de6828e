"""Sets of corrupted test images on disk: every image lands in its own set and class, or one line says why not."""

import os
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_trees import WNIDS, write_class_folders, write_tiny_imagenet, zip_tree

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.corrupted_sets import CorruptedSet, find_corrupted_sets
from hpo.vision.data.images import load_images
from hpo.vision.scoring import Accuracy, build_evaluation_set, evaluate

SIZE = 8
PETS = ("dogs", "cats")
"""Not in alphabetical order, as TinyImageNet's wnids are not."""


def write_plain(path: Path, number: int) -> None:
    """An image of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), (number % 256, number // 256, 7)).save(path)


def numbers(pixels: np.ndarray) -> list[int]:
    """The numbers of images that write_plain wrote."""
    assert (pixels == pixels[:, :1, :1]).all()
    return [int(red) + 256 * int(green) for red, green, _ in pixels[:, 0, 0]]


def write_sets(
    top: Path, families: Iterable[str] = ("fog", "snow"), severities: Iterable[str] = ("1", "2"), each: int = 2
) -> Path:
    """<family>/<severity>/<class>/, of cats and dogs."""
    for family in families:
        for severity in severities:
            for name in PETS:
                for i in range(each):
                    write_plain(top / family / severity / name / f"{i}.png", i)
    return top


def named(sets: list[CorruptedSet]) -> list[tuple[str, int | None]]:
    return [(found.family, found.severity) for found in sets]


words = st.sampled_from(["fog", "cats", "n01", "3", "gaussian_noise", "Été", "images", "train"])
layouts = st.fixed_dictionaries(
    {
        "top": st.lists(st.sampled_from(["Tiny-ImageNet-C", "blur", "2", "n01"]), max_size=2).map("/".join),
        "sets": st.sets(st.tuples(words, st.sampled_from("12345")), min_size=1, max_size=4),
        "classes": st.lists(words, min_size=2, max_size=4, unique=True),
        "others": st.sets(st.sampled_from(["n98", "n99"])),
        "each": st.integers(1, 3),
        "order": st.randoms(use_true_random=False),
        "severities": st.booleans(),
        "names_folders": st.booleans(),
    }
)


@settings(max_examples=30, deadline=None)
@given(layouts)
def test_every_image_lands_in_its_own_set_under_its_own_label(layout: dict) -> None:
    """In folders and zips, whatever classes and families are called, in whatever order the files were written."""
    order: random.Random = layout["order"]
    sets = layout["sets"] if layout["severities"] else {("plain", None)}
    places = [
        (family, severity, name, "/".join(filter(None, [layout["top"], family, severity, name])))
        for family, severity in sets
        for name in [*layout["classes"], *sorted(layout["others"])]
        for _ in range(layout["each"])
    ]
    files = [f"{place}/{number}.png" for number, (*_, place) in enumerate(places)]
    with tempfile.TemporaryDirectory() as temporary:
        source, packed = Path(temporary) / "source", Path(temporary) / "source.zip"
        for number in order.sample(range(len(files)), len(files)):
            write_plain(source / files[number], number)
        with zipfile.ZipFile(packed, "w") as archive:
            for path in order.sample(sorted(source.rglob("*")), len(list(source.rglob("*")))):
                if path.is_file() or layout["names_folders"]:
                    archive.write(path, path.relative_to(source))
        for where in (source, packed):
            found = find_corrupted_sets(where, layout["classes"])
            assert named(found) == sorted((f, int(s) if s else None) for f, s in sets)
            for each in found:
                split = each.decode(SIZE)
                landed = [
                    (places[number][:3], label)
                    for number, label in zip(numbers(split.pixels[split.rows]), split.labels.tolist(), strict=True)
                ]
                severity = None if each.severity is None else str(each.severity)
                assert landed == [
                    ((each.family, severity, name), label)
                    for label, name in enumerate(layout["classes"])
                    for _ in range(layout["each"])
                ]
                assert each.other_classes == len(layout["others"]) * layout["each"]
                assert split.pixels.dtype == np.uint8
                assert split.labels.dtype == split.keys.dtype == np.int64
                assert len(set(split.keys)) == len(split)
                assert (split.keys < 0).all()


def test_a_study_of_some_wnids_is_scored_on_a_set_of_more(tmp_path: Path) -> None:
    """As TinyImageNet's classes are scored on Tiny-ImageNet-C, which lies in a folder of its name."""
    study = write_tiny_imagenet(tmp_path / "study")
    data = DataSpec(name="tiny-imagenet", root=str(tmp_path / "root"), archive=str(study), validation_fraction=0.5)
    images = load_images(data, 32, seed=0)
    size = images.test.pixels.shape[1]
    for label, wnid in enumerate(("n00", *WNIDS)):
        for severity, right in (("1", label), ("5", 1)):
            folder = tmp_path / "Tiny-ImageNet-C" / "shot_noise" / severity / wnid
            folder.mkdir(parents=True)
            Image.new("L", (size, size), 40 * right).save(folder / "val_0.JPEG")
    sets = find_corrupted_sets(zip_tree(tmp_path / "Tiny-ImageNet-C", tmp_path / "c.zip"), images.classes)
    assert named(sets) == [("shot_noise", 1), ("shot_noise", 5)]
    assert [found.other_classes for found in sets] == [1, 1]

    def classify(pixels: torch.Tensor) -> torch.Tensor:
        """By brightness, as the images were drawn."""
        return -(pixels.float().mean((1, 2, 3))[:, None] - torch.tensor([40.0, 80.0, 120.0])).abs()

    scores = [
        evaluate(classify, build_evaluation_set(found.decode(size), [], torch.device("cpu")))["clean"] for found in sets
    ]
    assert scores == [Accuracy(3, 3), Accuracy(1, 3)]


def test_images_of_other_sizes_become_as_large_as_the_studys_by_the_same_rule(tmp_path: Path) -> None:
    study = write_class_folders(tmp_path / "study")
    data = DataSpec(name="image-folder", root=str(tmp_path / "root"), archive=str(study), validation_fraction=0.5)
    images = load_images(data, 32, seed=0)
    shutil.copytree(study, tmp_path / "sets" / "fog" / "2")
    (found,) = find_corrupted_sets(tmp_path / "sets", images.classes)
    split = found.decode(32)
    expected = [*images.train.pixels, *images.test.pixels]  # the training images' array has the tuning images too
    assert sorted(image.tobytes() for image in split.pixels) == sorted(image.tobytes() for image in expected)


def test_a_family_alone_is_called_by_the_archives_own_name(tmp_path: Path) -> None:
    write_sets(tmp_path / "c")
    archive = tmp_path / "haze.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "c" / "fog").rglob("*.png")):
            file.write(path, path.relative_to(tmp_path / "c" / "fog"))
    assert named(find_corrupted_sets(tmp_path / "c" / "fog", PETS)) == [("fog", 1), ("fog", 2)]
    assert named(find_corrupted_sets(archive, PETS)) == [("haze", 1), ("haze", 2)]
    assert named(find_corrupted_sets(tmp_path / "c" / "fog" / "1", PETS)) == [("1", None)]


def test_what_systems_leave_and_what_lies_beside_class_folders_is_no_image_of_a_set(tmp_path: Path) -> None:
    top = write_sets(tmp_path / "c")
    (top / "__MACOSX" / "fog" / "1" / "cats").mkdir(parents=True)
    for path in ("preview.png", "fog/preview.png", "fog/1/preview.png", "__MACOSX/fog/1/cats/._0.png", "fog/.DS_Store"):
        shutil.copy(top / "fog" / "1" / "cats" / "0.png", top / path)
    (top / "README.md").touch()
    (top / "fog" / "1" / "cats" / "0.npy").touch()
    for archive in (top, zip_tree(top, tmp_path / "c.zip")):
        sets = find_corrupted_sets(archive, PETS)
        assert named(sets) == [("fog", 1), ("fog", 2), ("snow", 1), ("snow", 2)]
        assert [len(found.listing.test) for found in sets] == [4] * 4
        assert [found.listing.left_out for found in sets] == [{".npy": 1}, {}, {}, {}]


def test_a_damaged_image_is_named_when_its_set_is_decoded(tmp_path: Path) -> None:
    top = write_sets(tmp_path / "c")
    (top / "fog" / "2" / "cats" / "1.png").write_text("no image")
    os.truncate(top / "snow" / "1" / "dogs" / "0.png", 40)
    (top / "snow" / "1" / "dogs" / "1.png").unlink()
    (top / "snow" / "1" / "dogs" / "1.png").symlink_to("nowhere.png")
    whole, *damaged, last = find_corrupted_sets(top, PETS)
    assert len(whole.decode(SIZE)) == len(last.decode(SIZE)) == 4
    said = []
    for found in damaged:
        with pytest.raises(DataError) as caught:
            found.decode(SIZE)
        said.append(str(caught.value))
    assert said[0] == (
        f"archive: {top}: fog/2/cats/1.png cannot be decoded: not an image; fetch or make the set anew: it is scored "
        "as a whole"
    )
    assert f"archive: {top}: 2 of 4 images cannot be decoded: snow/1/dogs/0.png (" in said[1]
    assert "snow/1/dogs/1.png (No such file or directory)" in said[1]
    assert "\n" not in said[1]


def rename(old: str, new: str) -> Callable[[Path], object]:
    def spoil(top: Path) -> None:
        (top / new).parent.mkdir(parents=True, exist_ok=True)
        (top / old).rename(top / new)

    return spoil


BAD = {
    "a class is missing": (
        lambda top: shutil.rmtree(top / "snow/2/cats"),
        "snow/2/ lacks 1 of the study's 2 classes: cats; it has dogs. Accuracies on other classes cannot be compared",
    ),
    "other classes": (
        lambda top: [rename(f"{set_}/{name}", f"{set_}/n_{name}")(top) for set_ in ("fog/1",) for name in PETS],
        "fog/1/ lacks 2 of the study's 2 classes: dogs, cats; it has n_cats, n_dogs.",
    ),
    "an unknown severity": (rename("fog/2", "fog/6"), "fog/6/ should be named by a severity, 1 to 5; rename or remove"),
    "a severity that is no number": (
        rename("fog/2", "fog/low"),
        "or a folder a class, and nothing else; what does not fit in: fog/low/cats/, fog/low/dogs/",
    ),
    "both layouts": (
        lambda top: shutil.copytree(top / "fog" / "1", top, dirs_exist_ok=True),
        "or a folder a class, and nothing else; what does not fit in: cats/, dogs/",
    ),
    "folders in class folders": (
        lambda top: shutil.copytree(top / "fog" / "1" / "cats", top / "fog" / "1" / "cats" / "more"),
        "and nothing else; what does not fit in: fog/1/cats/more/",
    ),
    "an empty severity": (
        lambda top: (top / "fog" / "3").mkdir(),
        "fog/3/ has no images; fill the folder or remove it",
    ),
    "an empty class": (
        lambda top: [path.rename(path.with_suffix(".npy")) for path in (top / "fog/1/cats").iterdir()],
        "fog/1/cats/ has no images, only files of types that are not read (2 .npy); fill the folder or remove it",
    ),
    "a family twice": (
        lambda top: shutil.copytree(top / "fog" / "1", top / "weather" / "fog" / "1"),
        "fog/1/ and weather/fog/1/ are both fog of severity 1; keep one of them",
    ),
    "no folders": (
        lambda top: [rename("fog/1/cats/0.png", "0.png")(top), shutil.rmtree(top / "fog"), shutil.rmtree(top / "snow")],
        "has no folders of images; it must hold <family>/<severity>/<class>/",
    ),
    "a line break in a name": (rename("fog/2", "fog/2\n"), "what does not fit in: fog/2\\n/cats/, fog/2\\n/dogs/"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("defect", BAD)
def test_a_set_that_cannot_be_scored_is_refused_in_one_line(tmp_path: Path, defect: str, packed: bool) -> None:
    top = write_sets(tmp_path / "c")
    spoil, expected = BAD[defect]
    spoil(top)
    archive = top
    if packed:
        archive = tmp_path / "c.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(top.rglob("*")):
                file.write(path, path.relative_to(top))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        find_corrupted_sets(archive, PETS, "--images")
    message = str(caught.value)
    assert message.startswith(f"--images: {archive}")
    assert expected in message
    assert message.isprintable(), "one line"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_archives_that_are_not_read_are_refused_as_a_studys_are(tmp_path: Path) -> None:
    top = write_sets(tmp_path / "c")
    packed = tmp_path / "Tiny-ImageNet-C.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(top, "Tiny-ImageNet-C")
    with pytest.raises(DataError, match=r"^archive: .*C\.tar is a tar archive; give a zip, or unpack it and give the"):
        find_corrupted_sets(packed, PETS)
    with pytest.raises(DataError, match=r"^--images: .*absent does not exist; give a zip or a folder$"):
        find_corrupted_sets(tmp_path / "absent", PETS, "--images")
