"""Folders and archives as people have them: splits of any name, what systems leave behind, links, zips of odd kinds."""

import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_trees import WNIDS, write_class_folders, write_tiny_imagenet, zip_tree

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.vision.data.images import ImageSet, load_images


def load(tmp_path: Path, archive: Path, name: str = "image-folder") -> ImageSet:
    data = {"name": name, "root": str(tmp_path / "root"), "validation_fraction": 0.5, "archive": str(archive)}
    return load_images(DataSpec.model_validate(data), 32, seed=0)


def refusal(tmp_path: Path, archive: Path, name: str = "image-folder") -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, archive, name)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert str(archive) in message
    assert not list((tmp_path / "root" / "images").glob("*/")), "no cache is left behind"
    return message


def sizes(images: ImageSet) -> tuple[int, int]:
    return len(images.train) + len(images.tuning), len(images.test)


SPLITS = [
    ("train", "test"),
    ("train", "valid"),
    ("Train", "Validation"),
    ("TRAIN", "TEST"),
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("seg_train", "seg_test"),
    ("train-images", "dev"),
    ("Train2017", "Val2017"),
    ("trainval", "hold-out"),
]


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize(("train", "test"), SPLITS)
def test_splits_by_any_name(tmp_path: Path, train: str, test: str, packed: bool) -> None:
    source = tmp_path / "source"
    write_class_folders(source / train, each=6)
    write_class_folders(source / test / test, each=2)  # a folder within a folder of its name, as some zips have
    images = load(tmp_path, zip_tree(source, tmp_path / "source.zip") if packed else source)
    assert images.classes == ("cats", "dogs")
    assert sizes(images) == (12, 4)


def test_test_images_are_those_of_test_or_else_those_of_val(tmp_path: Path) -> None:
    for name, each in (("Train", 6), ("Val", 3), ("Test", 2)):
        write_class_folders(tmp_path / "all" / name, each=each)
    assert sizes(load(tmp_path, tmp_path / "all")) == (12, 4)
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(tmp_path / "all", unlabelled)
    shutil.rmtree(unlabelled / "Test")
    shutil.copytree(tmp_path / "all" / "Val" / "cats", unlabelled / "Test")
    assert sizes(load(tmp_path, unlabelled)) == (12, 6)


def flat_test(source: Path) -> None:
    write_class_folders(source / "train")
    shutil.copytree(source / "train" / "cats", source / "test")


def flat_splits(source: Path) -> None:
    write_class_folders(source, ("Train", "Test"))


def no_training_images(source: Path) -> None:
    write_class_folders(source / "Test")
    write_class_folders(source / "Val")


def training_images_of_an_unknown_name(source: Path) -> None:
    write_class_folders(source / "fitting")
    write_class_folders(source / "Test")


def two_trainings(source: Path) -> None:
    write_class_folders(source / "train")
    write_class_folders(source / "training")
    write_class_folders(source / "test")


def two_tests(source: Path) -> None:
    for name in ("train", "test", "testing"):
        write_class_folders(source / name)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (flat_test, ["test/, train/", "train/ alone is split by hpo"]),
        (flat_splits, ["Train must hold two folders or more, a folder a class; found 0"]),
        (no_training_images, ["Test/, Val/", "must be train/"]),
        (training_images_of_an_unknown_name, ["the folders Test/, named as splits", "must be train/"]),
        (two_trainings, ["test/, train/, training/", "one folder, and no more, must be train/"]),
        (two_tests, ["keep one of test/, testing/"]),
    ],
)
def test_splits_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], expected: list[str]
) -> None:
    make(tmp_path / "source")
    message = refusal(tmp_path, tmp_path / "source")
    assert all(words in message for words in expected), message


@pytest.mark.parametrize("names", [("train", "bus"), ("valid", "invalid"), ("steam_train", "bullet_train", "tram")])
def test_classes_may_be_called_as_splits_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = write_class_folders(tmp_path / "source", names)
    assert load(tmp_path, source).classes == tuple(sorted(names))
    if "train" in names:
        return  # with folders in it, it is a split's
    for name in names:
        (source / name).rename(source / "2019")
        (source / name).mkdir()
        (source / "2019").rename(source / name / "2019")
    assert load(tmp_path, source).classes == tuple(sorted(names))


def add_what_systems_leave(source: Path, classes: Path) -> None:
    """At the top, beside the class folders, and in them."""
    for folder in {source, classes}:
        shutil.copy(classes / "cats" / "0.png", folder / "logo.png")
        for name in ("README.md", "labels.csv", "notes.txt", ".DS_Store", "Thumbs.db"):
            (folder / name).write_text("text")
        for name in ("__MACOSX/cats", ".ipynb_checkpoints", "@eaDir", ".git/lfs"):
            (folder / name).mkdir(parents=True)
            shutil.copy(classes / "cats" / "0.png", folder / name / "0.png")
        (folder / "__MACOSX/cats/._0.png").write_bytes(b"\0\5\x16\7")
    (classes / "cats" / "._1.png").write_bytes(b"\0\5\x16\7")
    (classes / "cats" / ".ipynb_checkpoints").mkdir()
    shutil.copy(classes / "cats" / "0.png", classes / "cats" / ".ipynb_checkpoints" / "0-checkpoint.png")


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("below", ["", "pets", "pets/pets", "pets/Train"])
def test_what_lies_beside_class_folders_is_no_class(tmp_path: Path, below: str, packed: bool) -> None:
    source = tmp_path / "source"
    classes = write_class_folders(source / below)
    if below.endswith("Train"):
        write_class_folders(classes.parent / "Test", each=4)
    add_what_systems_leave(source, classes)
    images = load(tmp_path, zip_tree(source, tmp_path / "source.zip") if packed else source)
    assert images.classes == ("cats", "dogs")
    assert sizes(images) == ((20, 8) if below.endswith("Train") else (16, 4))


def test_zips_as_other_programs_write_them(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source")
    expected = load(tmp_path, source).fingerprint
    for name, written in (("windows.zip", "{}\\{}"), ("dot.zip", "./{}/{}"), ("top.zip", "/all//{}/{}")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in source.glob("*/*"):
                info = zipfile.ZipInfo("x")
                info.filename = written.format(file.parent.name, file.name)
                archive.writestr(info, file.read_bytes())
            archive.writestr("../outside.png", b"nothing is ever unpacked")
        assert load(tmp_path, tmp_path / name).fingerprint == expected
    assert not (tmp_path / "outside.png").exists()


def patch(archive: Path, inner: str, offsets: tuple[int, int], value: bytes) -> None:
    """Writes over a field of one member's header, as it stands before its data and as it stands in the index."""
    content = bytearray(archive.read_bytes())
    for magic, name_at, offset in ((b"PK\3\4", 30, offsets[0]), (b"PK\1\2", 46, offsets[1])):
        at = content.find(magic)
        while content[at + name_at : at + name_at + len(inner)] != inner.encode():
            at = content.index(magic, at + 1)
        content[at + offset : at + offset + len(value)] = value
    archive.write_bytes(content)


def spoil_stream(archive: Path, inner: str) -> None:
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo(inner).header_offset + 30 + len(inner)
    content = bytearray(archive.read_bytes())
    content[start : start + 6] = b"\xff" * 6
    archive.write_bytes(content)


METHOD, FLAGS, VERSION = (8, 10), (6, 8), (4, 6)


@pytest.mark.parametrize("inner", ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/train/n02/images/n02_0.JPEG"])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda zipped, inner: patch(zipped, inner, METHOD, struct.pack("<H", 9)), "by method 9 (Deflate64"),
        (lambda zipped, inner: patch(zipped, inner, METHOD, struct.pack("<H", 93)), "by method 93 (Zstandard)"),
        (lambda zipped, inner: patch(zipped, inner, METHOD, struct.pack("<H", 77)), "by method 77 (unknown here)"),
        (lambda zipped, inner: patch(zipped, inner, FLAGS, b"\1"), "is encrypted"),
        (lambda zipped, inner: patch(zipped, inner, FLAGS, b"\x20"), "compressed patched data"),
        (lambda zipped, inner: patch(zipped, inner, VERSION, b"\x63"), "zip file version 9.9"),
        (spoil_stream, "while decompressing"),
    ],
    ids=["Deflate64", "Zstandard", "unknown", "encrypted", "patched", "newer", "damaged"],
)
def test_zips_that_cannot_be_read_say_why(
    tmp_path: Path, spoil: Callable[[Path, str], None], inner: str, expected: str
) -> None:
    if "Zstandard" in expected and sys.version_info >= (3, 14):
        pytest.skip("this Python reads it")
    source = write_tiny_imagenet(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source.parent))
    spoil(tmp_path / "tiny.zip", inner)
    message = refusal(tmp_path, tmp_path / "tiny.zip", "tiny-imagenet")
    assert expected in message
    assert "version" in expected or inner in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "is a 7z archive; give a zip, or unpack it and give the folder"),
        ("a.rar", b"Rar!\x1a\x07\x01\x00", "is a rar archive; give a zip"),
        ("a.zip", b"version https://git-lfs.github.com/spec/v1\n", "is no zip but a Git LFS pointer"),
        ("b.zip", b"\n<!DOCTYPE html><html>", "is no zip but a web page"),
        ("c.zip", b"", "is no zip but an empty file"),
        ("d.zip", b"PK\3\4", "is not a whole zip file"),
    ],
)
def test_what_is_no_zip_is_called_by_its_name(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path, tmp_path / name)


@pytest.mark.parametrize(
    ("mode", "expected"), [("w:gz", "a gzip file"), ("w", "a tar archive"), ("w:xz", "an xz file")]
)
def test_a_tar_is_called_a_tar(tmp_path: Path, mode: str, expected: str) -> None:
    source = write_class_folders(tmp_path / "source")
    with tarfile.open(tmp_path / "images.tar", mode) as archive:  # type: ignore[call-overload]
        archive.add(source, "images")
    assert f"is {expected}" in refusal(tmp_path, tmp_path / "images.tar")


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    plain = write_class_folders(tmp_path / "plain")
    linked, files = tmp_path / "linked", tmp_path / "files"
    linked.mkdir()
    for name in ("cats", "dogs"):
        (linked / name).symlink_to(plain / name)
        (files / name).mkdir(parents=True)
        for image in (plain / name).iterdir():
            (files / name / image.name).symlink_to(image)
    expected = load(tmp_path, plain).fingerprint
    assert load(tmp_path, linked).fingerprint == expected
    assert load(tmp_path, files).fingerprint == expected


def test_links_that_lead_in_a_circle_or_nowhere_end(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source")
    expected = load(tmp_path, source).fingerprint
    (source / "latest").symlink_to(source)
    (source / "cats" / "up").symlink_to("..")
    (source / "dogs" / "self").symlink_to("self")
    (source / "dogs" / ".#lock").symlink_to("nowhere")
    (source / "dogs" / "notes.txt").symlink_to("nowhere")
    os.mkfifo(source / "dogs" / "pipe.png")
    images = load(tmp_path, source)
    assert sizes(images) == (16, 4)
    assert images.fingerprint == expected


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".jfif", "JPEG"), (".JPE", "JPEG"), (".avif", "AVIF"), (".jp2", "JPEG2000")]
)
def test_images_by_suffixes_that_are_less_known(tmp_path: Path, suffix: str, kind: str) -> None:
    source = write_class_folders(tmp_path / "source")
    for image in list((source / "cats").iterdir()):
        with Image.open(image) as opened:
            opened.convert("RGB").save(image.with_suffix(suffix), kind)
        image.unlink()
    images = load(tmp_path, source)
    assert sizes(images) == (16, 4)
    assert images.left_out == {}


def test_files_of_types_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source")
    for name in ("1.HEIC", "2.heic", "noted"):
        (source / "cats" / name).touch()
    (source / "README.md").touch()
    assert load(tmp_path, source).left_out == {".heic": 2, "no suffix": 1}
    for image in (source / "cats").glob("*.png"):
        image.unlink()
    shutil.rmtree(tmp_path / "root")
    assert "cats/, only files of types that are not read (2 .heic, 1 no suffix); convert them" in refusal(
        tmp_path, source
    )


def test_a_link_to_nowhere_that_should_be_an_image_or_a_class_is_named(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", ("cats", "dogs", "newts"))
    (source / "cats" / "7.png").unlink()
    (source / "cats" / "7.png").symlink_to("/mnt/away/7.png")
    assert "cats/7.png cannot be decoded: No such file or directory" in refusal(tmp_path, source)
    (source / "cats" / "7.png").unlink()
    shutil.rmtree(source / "newts")
    (source / "newts").symlink_to("/mnt/away/newts")
    assert "class newts has no images in newts/" in refusal(tmp_path, source)


@pytest.mark.parametrize("name", [b"caf\xe9", "été".encode(), b"two\nlines", b"a\tb", "\u202egnp".encode()])
def test_odd_names_load_and_are_shown_in_one_line(tmp_path: Path, name: bytes) -> None:
    source = write_class_folders(tmp_path / "source")
    os.rename(source / "dogs", os.fsencode(source) + b"/" + name)
    os.rename(source / "cats" / "3.png", os.fsencode(source) + b"/cats/" + name + b".png")
    images = load(tmp_path, source)
    assert sizes(images) == (16, 4)
    assert all(text.encode() for text in images.classes)
    with open(os.fsencode(source) + b"/cats/" + name + b".png", "wb") as file:
        file.write(b"no image at all")
    assert "cannot be decoded: not an image" in refusal_of_changed(tmp_path, source)


def refusal_of_changed(tmp_path: Path, source: Path) -> str:
    shutil.rmtree(tmp_path / "root")
    return refusal(tmp_path, source)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source")
    code = (
        "import sys; from hpo.study_file.images import DataSpec; from hpo.vision.data.images import load_images\n"
        "try: load_images(DataSpec(name='image-folder', root=sys.argv[1], archive=sys.argv[2]), 32, 0)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    (source / "dogs").chmod(0)
    if os.access(source / "dogs", os.R_OK):
        pytest.skip("this user may read everything")
    command = [sys.executable, "-c", code, str(tmp_path / "root"), str(source)]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    (source / "dogs").chmod(0o700)
    assert said == f"DataError data.archive: {source}/dogs cannot be read: Permission denied\n"


def sort_validation_images(top: Path, below: str, keep_annotations: bool) -> None:
    for line in (top / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (top / "val" / wnid / below).mkdir(parents=True, exist_ok=True)
        (top / "val" / "images" / name).rename(top / "val" / wnid / below / name)
    (top / "val" / "images").rmdir()
    if not keep_annotations:
        (top / "val" / "val_annotations.txt").unlink()


@pytest.mark.parametrize("keep_annotations", [True, False])
@pytest.mark.parametrize("below", ["images", "."])
def test_tiny_imagenet_with_its_validation_images_sorted_into_classes(
    tmp_path: Path, below: str, keep_annotations: bool
) -> None:
    top = write_tiny_imagenet(tmp_path / "source")
    unlabelled = top / "test" / "images"
    unlabelled.mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(unlabelled / "test_0.JPEG")
    official = load(tmp_path, top, "tiny-imagenet")
    hint = refusal_of_changed(tmp_path, top)
    assert "data.name = 'tiny-imagenet' reads TinyImageNet's own layout" in hint
    sort_validation_images(top, below, keep_annotations)
    assert load(tmp_path, top, "tiny-imagenet").fingerprint == official.fingerprint
    as_folders = load(tmp_path, top)
    assert as_folders.classes == WNIDS
    assert sizes(as_folders) == (18, 3)


def test_tiny_imagenets_classes_are_named_in_words_where_these_are_clear(tmp_path: Path) -> None:
    top = write_tiny_imagenet(tmp_path / "source")
    assert load(tmp_path, top, "tiny-imagenet").names == WNIDS
    (top / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, hoist\n")
    assert load(tmp_path, top, "tiny-imagenet").names == ("goldfish", "n02", "n03")
