"""What is seen of an image: upright, on white, in 8 bits, as viewers show it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.image_trees import write_class_folders
from support.studies import make_spec

from hpo.errors import DataError
from hpo.study_file.images import DataSpec
from hpo.study_file.reading import read_spec, trial_as_toml
from hpo.vision.data.images import ImageSet, load_images

SIZE = 16


def load(tmp_path: Path, source: Path, **data: object) -> ImageSet:
    data |= {"name": "image-folder", "root": str(tmp_path / "root"), "archive": str(source), "validation_fraction": 0.5}
    return load_images(DataSpec.model_validate(data), SIZE, seed=0)


def decoded(tmp_path: Path, save: Callable[[Path], object], suffix: str = ".png") -> NDArray[np.uint8]:
    """What becomes of one image of `SIZE`: the first of the training images."""
    source = tmp_path / "source"
    write_class_folders(source / "train", ("a", "b"), each=3)
    write_class_folders(source / "test", ("a", "b"), each=2)
    save(source / "train" / "a" / f"!{suffix}")
    return load(tmp_path, source).train.pixels[0]


RAMP = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)


@pytest.mark.parametrize(("suffix", "order"), [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path: Path, suffix: str, order: str) -> None:
    pixels = decoded(tmp_path, Image.fromarray(RAMP.astype(order)).save, suffix)
    expected = (RAMP / 257).round().astype(np.uint8)
    assert np.array_equal(pixels, np.stack([expected] * 3, axis=-1))


def test_a_netpbm_image_of_12_bits_is_scaled_to_8(tmp_path: Path) -> None:
    content = f"P5 {SIZE} {SIZE} 4095\n".encode() + (RAMP // 16).astype(">u2").tobytes()
    pixels = decoded(tmp_path, lambda file: file.write_bytes(content), ".ppm")
    assert np.abs(pixels[..., 0].astype(float) - RAMP / 257).max() <= 1


@pytest.mark.parametrize(
    ("kind", "named"), [("int16", "signed"), ("int32", "signed or 32-bit integers"), ("float32", "floats")]
)
def test_values_of_unknown_range_are_refused_by_name(tmp_path: Path, kind: str, named: str) -> None:
    with pytest.raises(
        DataError, match=rf"!\.tif cannot be decoded: its values are {named}.* whose range is not known"
    ):
        decoded(tmp_path, Image.fromarray((RAMP // 2).astype(kind)).save, ".tif")


ORIENTED = {
    1: lambda seen: seen,
    2: np.fliplr,
    3: lambda seen: np.rot90(seen, 2),
    4: np.flipud,
    5: lambda seen: np.swapaxes(seen, 0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.swapaxes(np.rot90(seen, 2), 0, 1),
    8: lambda seen: np.rot90(seen, -1),
}
"""As the sensor of a camera held so saw what is seen upright."""


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [*ORIENTED, 0, 9])
def test_photos_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    seen = np.zeros((SIZE, SIZE, 3), np.uint8)
    seen[:8, :8], seen[:8, 8:] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED.get(orientation, ORIENTED[1])(seen)))
    pixels = decoded(tmp_path, lambda file: stored.save(file, exif=exif.tobytes(), quality=95), suffix)
    assert np.abs(pixels[[3, 3, 12], [3, 12, 3]].astype(int) - seen[[3, 3, 12], [3, 12, 3]]).max() < 40


def test_exif_that_cannot_be_read_does_no_harm(tmp_path: Path) -> None:
    grey = Image.new("RGB", (SIZE, SIZE), (99, 99, 99))
    pixels = decoded(tmp_path, lambda file: grey.save(file, exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff"), ".jpg")
    assert (pixels == 99).all()


def shape_on_nothing() -> Image.Image:
    image = Image.new("RGBA", (SIZE, SIZE), (10, 200, 30, 0))
    image.paste((0, 0, 0, 255), (4, 4, 12, 12))
    return image


def palette_with_one_colour_clear(file: Path) -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([10, 200, 30, 0, 0, 0])
    image.paste(1, (4, 4, 12, 12))
    image.save(file, transparency=0)


def palette_with_clear_bytes(file: Path) -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([10, 200, 30, 0, 0, 0])
    image.paste(1, (4, 4, 12, 12))
    image.save(file, transparency=bytes([0, 255]))


def grey_of_16_bits_with_one_value_clear(file: Path) -> None:
    values = np.full((SIZE, SIZE), 30_000, np.uint16)
    values[4:12, 4:12] = 0
    Image.fromarray(values).save(file, transparency=30_000)


def colour_with_one_colour_clear(file: Path) -> None:
    image = Image.new("RGB", (SIZE, SIZE), (10, 200, 30))
    image.paste((0, 0, 0), (4, 4, 12, 12))
    image.save(file, transparency=(10, 200, 30))


@pytest.mark.parametrize(
    ("save", "suffix"),
    [
        (lambda file: shape_on_nothing().save(file), ".png"),
        (lambda file: shape_on_nothing().save(file, lossless=True), ".webp"),
        (lambda file: shape_on_nothing().save(file), ".tif"),
        (lambda file: shape_on_nothing().convert("LA").save(file), ".png"),
        (palette_with_one_colour_clear, ".png"),
        (palette_with_one_colour_clear, ".gif"),
        (palette_with_clear_bytes, ".png"),
        (colour_with_one_colour_clear, ".png"),
        (grey_of_16_bits_with_one_value_clear, ".png"),
    ],
)
def test_what_is_transparent_is_white(
    tmp_path: Path, save: Callable[[Path], object], suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = decoded(tmp_path, save, suffix)
    expected = np.full((SIZE, SIZE, 3), 255, np.uint8)
    expected[4:12, 4:12] = 0
    assert np.array_equal(pixels, expected)
    assert capfd.readouterr() == ("", "")


def test_half_transparent_is_half_white_and_opaque_is_as_it_was(tmp_path: Path) -> None:
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 128))
    image.paste((7, 77, 177, 255), (0, 0, SIZE, 8))
    pixels = decoded(tmp_path, image.save)
    assert (pixels[:8] == (7, 77, 177)).all()
    assert (pixels[8:] == 127).all()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    pixels = decoded(
        tmp_path, lambda file: frames[0].save(file, save_all=True, append_images=frames[1:], **options), suffix
    )
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_keeps_its_colours(tmp_path: Path, suffix: str) -> None:
    pixels = decoded(tmp_path, Image.new("RGB", (SIZE, SIZE), (200, 40, 90)).convert("CMYK").save, suffix)
    assert np.abs(pixels.astype(int) - (200, 40, 90)).max() < 12


def bad_folder(tmp_path: Path, bad: int) -> Path:
    source = write_class_folders(tmp_path / "source", each=40)
    for number in range(bad):
        os.truncate(source / "cats" / f"{number}.png", 60)
    return source


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, bad_folder(tmp_path, 3))
    message = str(caught.value)
    assert "3 of 80 images cannot be decoded: " in message
    assert all(f"cats/{number}.png (" in message for number in range(3))
    assert "data.bad_images = 'skip' leaves them out" in message
    assert "\n" not in message


def test_of_many_bad_images_the_first_are_named_and_all_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"24 of 80 images cannot be decoded: .* and 14 more; mend") as caught:
        load(tmp_path, bad_folder(tmp_path, 24))
    assert str(caught.value).count(".png (") == 10


def test_bad_images_are_skipped_up_to_a_share(tmp_path: Path) -> None:
    source = bad_folder(tmp_path, 2)
    with pytest.raises(DataError, match=r"2 of 80 .*more than data.max_bad_share = 0\.01 of all allows"):
        load(tmp_path, source, bad_images="skip")
    assert not list((tmp_path / "root" / "images").glob("*/")), "no cache is left behind"
    images = load(tmp_path, source, bad_images="skip", max_bad_share=0.025)
    assert images.skipped == ("cats/0.png", "cats/1.png")
    assert len(images.train) + len(images.tuning) + len(images.test) == 78
    assert images.train.pixels.reshape(len(images.train.pixels), -1).any(axis=1).all(), "no image was left blank"
    again = load(tmp_path, source, bad_images="skip", max_bad_share=0.025)
    assert (again.skipped, again.fingerprint) == (images.skipped, images.fingerprint)
    with pytest.raises(DataError, match="2 of 80 images cannot be decoded"):
        load(tmp_path, source)
    for number in range(2):
        (source / "cats" / f"{number}.png").unlink()
    mended = load(tmp_path, source)
    assert mended.skipped == ()
    assert len(mended.train) + len(mended.tuning) + len(mended.test) == 78


def test_a_study_that_skips_no_images_is_written_as_before_there_was_the_key() -> None:
    """So its checkpoints are found again, and workers of before can read it."""
    plain = DataSpec(name="image-folder", archive="images", bad_images="refuse", max_bad_share=0.01)
    assert not {"bad_images", "max_bad_share"} & plain.model_dump(mode="json").keys()
    skipping = DataSpec(name="image-folder", archive="images", bad_images="skip", max_bad_share=0.25)
    for data in (plain, skipping):
        assert DataSpec.model_validate(data.model_dump()) == data
        assert DataSpec.model_validate_json(data.model_dump_json()) == data
    study = make_spec(data=skipping.model_dump())
    assert read_spec(json.loads(study.model_dump_json())) == study
    assert 'bad_images = "skip"\nmax_bad_share = 0.25' in trial_as_toml(study, 1, {})


def test_a_class_is_not_skipped_away(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", ("cats", "dogs", "newts"), each=10)
    for image in (source / "newts").iterdir():
        image.write_bytes(b"")
    with pytest.raises(DataError, match="no train image of class newts can be decoded"):
        load(tmp_path, source, bad_images="skip", max_bad_share=0.5)


def test_an_image_that_a_pointer_stands_for_says_so(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(DataError, match="cannot be decoded: a Git LFS pointer; `git lfs pull` fetches"):
        decoded(tmp_path, lambda file: file.write_bytes(pointer))
