"""`hpo new`: a first study file for a folder of images or for scikit-learn's digits."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Literal

import tomli_w

from hpo.errors import DataError, InputError
from hpo.vision.data.image_folder import list_image_folder
from hpo.vision.data.listing import Listing, by_suffix
from hpo.vision.data.tiny_imagenet import list_tiny_imagenet
from hpo.vision.data.trees import open_tree, printable

IMAGES_SAMPLED = 200
BAD_SHOWN = 3
INPUT_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
BATCH_SIZES = (16, 32, 64, 128)
TUNING_IMAGES = 500
"""Enough to measure an accuracy to within 4 points. Of few images, at most a share of MOST_TUNING is set aside."""
LEAST_TUNING, MOST_TUNING = 0.1, 0.25
COMMENTS_AT = 33

Kind = Literal["tiny-imagenet", "image-folder"]


@dataclass(frozen=True)
class Look:
    """What was found in a source of images.

    kind: as `data.name`; train: the number of training images of each class; test: the number of test images; sizes:
    the shorter sides of a sample of images in pixels, ascending; left_out: the number of files of unsupported types, by
    suffix; bad: paths of images in the sample that cannot be decoded.
    """

    kind: Kind
    where: Path
    train: dict[str, int]
    test: int
    sizes: list[int]
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad: Sequence[str] = ()


def write_study_file(file: Path, images: Path | None) -> str:
    """Writes a new study file for these images, or for the digits; a one-line summary of the images.

    Raises InputError if the file exists or cannot be written, or if the images are unsuitable for a study.
    """
    if file.exists() or file.is_symlink():  # checked before reading many images
        raise InputError(f"{file} already exists; choose another name or remove it first")
    found = None if images is None else look_at(images)
    text = digits_study(file) if found is None else image_study(file, found)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise InputError(
            "--images: the path must be valid UTF-8, as study files are; rename the folder or link to it"
        ) from None
    try:
        with file.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
            except OSError:  # a full disk: half a file would block the next attempt
                file.unlink()
                raise
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from None
    return "scikit-learn's handwritten digits" if found is None else _summary(found)


def look_at(images: Path) -> Look:
    """Examines the images of a folder or zip file. Raises InputError if they are unsuitable for a study."""
    kind, listing = _list(images)
    sizes, bad = _shorter_sides(listing)
    counted = Counter(label for _, label in listing.train)
    train = {name: counted[label] for label, name in enumerate(listing.classes)}
    for name, count in train.items():
        if count < 2:
            raise InputError(
                f"--images: class {name} has only one training image; at least 2 are needed, since one "
                "of them scores the trials"
            )
    return Look(kind, images, train, len(listing.test), sizes, listing.left_out, bad)


def _list(images: Path) -> tuple[Kind, Listing]:
    """Raises DataError."""
    tree = open_tree(images.expanduser(), "--images")
    try:
        return "tiny-imagenet", list_tiny_imagenet(tree)
    except DataError:  # as for most folders
        return "image-folder", list_image_folder(tree)


def _shorter_sides(listing: Listing) -> tuple[list[int], list[str]]:
    """Of a sample of the training images; and those that cannot be decoded. Raises DataError if none can be."""
    step = max(1, len(listing.train) // IMAGES_SAMPLED)
    sides, bad = [], []
    for path, _ in listing.train[::step]:
        try:
            with listing.open_image(path) as image:
                sides.append(min(image.size))
        except Exception as error:  # whatever Pillow's decoders raise
            bad.append(f"{printable(path)} ({printable(str(error).splitlines()[0] if str(error) else repr(error))})")
    if not sides:
        raise DataError(f"{listing.where}: none of its images can be decoded, for example {bad[0]}")
    return sorted(sides), bad


def _summary(found: Look) -> str:
    least, most = min(found.train.values()), max(found.train.values())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    first, last = found.sizes[0], found.sizes[-1]
    size = f"{first}" if first == last else f"{first} to {last}"
    others = f"; files of unsupported types skipped: {by_suffix(found.left_out)}" if found.left_out else ""
    bad = f"; cannot be decoded: {', '.join(found.bad[:BAD_SHOWN])}" if found.bad else ""
    bad += f" and {len(found.bad) - BAD_SHOWN} more" if len(found.bad) > BAD_SHOWN else ""
    return (
        f"{len(found.train):,} classes with {each} training images each, {found.test:,} test images, "
        f"shorter side {size} px{others}{bad}"
    )


def image_study(file: Path, found: Look) -> str:
    """The text of a study file for these images."""
    count = sum(found.train.values())
    fraction = round(min(max(TUNING_IMAGES / count, LEAST_TUNING), MOST_TUNING), 2)
    tuning = max(round(fraction * count), len(found.train))
    usual = median_low(found.sizes)
    size = max((size for size in INPUT_SIZES if size <= usual), default=INPUT_SIZES[0])
    batches = [batch for batch in BATCH_SIZES if batch <= count - tuning] or [BATCH_SIZES[0]]
    dropped = f"trials that lose more clean accuracy are infeasible; 0.015 is {0.015 * tuning:.2g} tuning images"
    kind = "one folder per class" if found.kind == "image-folder" else "in TinyImageNet's own layout"
    return _study(
        file,
        f"{_printable(found.where.name)}: {_summary(found)}",
        budget=30,
        data=[
            _line(f'name = "{found.kind}"', kind),
            f"archive = {_quoted(str(found.where.expanduser().absolute()))}",
            _line(
                f"validation_fraction = {fraction}", f"of each class, to score trials: about {tuning:,} tuning images"
            ),
            _line("# images_per_class = 100", "train on only this many per class, for a first try"),
            _line(f'{"" if found.bad else "# "}bad_images = "skip"', "skip images that cannot be decoded, up to 1 %"),
        ],
        model=[
            _line('weights = "imagenet"', 'downloaded (45 MB); or "none", or a .safetensors or .pth file'),
            _line(
                f"input_size = {size}",
                f"px that images are scaled to (their median is {usual}); twice the size takes 4 times as long",
            ),
        ],
        training=[
            "epochs = 10",
            _line("horizontal_flip = true", "false if a mirrored image is no longer of its class, such as text"),
        ],
        search=[
            f"batch_size = {{ choices = {batches} }}",
            "learning_rate = { low = 1e-3, high = 1e-1, log = true, default = 2e-2 }",
            _line(
                "frozen_layers = { low = 0, high = 9 }", "of the stem and eight residual blocks, counted from the input"
            ),
            "augmentation_strength = { low = 0.0, high = 1.0, default = 0.7 }",
        ],
        objective=_objective(_line("# max_clean_drop = 0.015", dropped), sigma=0.1, fraction=0.05),
    )


def digits_study(file: Path) -> str:
    """The text of a study file for scikit-learn's digits."""
    dropped = "trials that lose more clean accuracy than this are infeasible"
    return _study(
        file,
        "Handwritten digits: 1,797 scans of 8 px that come with scikit-learn; nothing is downloaded",
        budget=10,
        data=[
            _line('name = "digits"', "for your own images: hpo new --images FOLDER"),
            _line("validation_fraction = 0.2", "of each class, to score trials: 287 tuning images"),
        ],
        model=[
            _line('weights = "none"', 'from scratch; or "imagenet" (downloaded), or a .safetensors or .pth file'),
            "input_size = 32",
        ],
        training=["epochs = 4", _line("horizontal_flip = false", "a mirrored digit is no longer a digit")],
        search=[
            "batch_size = { choices = [16, 32, 64] }",
            "learning_rate = { low = 5e-3, high = 2e-1, log = true }",
            _line("frozen_layers = { low = 0, high = 2 }", "counted from the input"),
            "augmentation_strength = { low = 0.0, high = 1.0, default = 0.5 }",
        ],
        objective=_objective(_line("# max_clean_drop = 0.02", dropped), sigma=0.3, fraction=0.2),
    )


def _study(
    file: Path,
    title: str,
    budget: int,
    data: list[str],
    model: list[str],
    training: list[str],
    search: list[str],
    objective: list[str],
) -> str:
    """The text of a study file: the lines of its sections, and what all new study files have in common."""
    lines = [
        f"# {title}.",
        "#",
        f"#   hpo run {shlex.quote(_printable(file.name))} --workers auto",
        "#",
        "# All keys, their defaults and meanings: docs/study-file.md. To override one: --set budget=50",
        "",
        f"name = {_quoted(_name(file))}",
        _line(f"budget = {budget}", "trials, including the baseline"),
        "seed = 0",
        *("", "[data]", *data),
        *(
            "",
            "[model]",
            _line('name = "resnet18"', 'or "resnet50", "convnext_tiny", "vit_b_16", … (docs/study-file.md)'),
            *model,
        ),
        *("", "[training]", *training),
        *("", _line("[search]", "a range, choices, or a fixed value"), *search),
        *("", *objective),
        *("", "[sampler]", _line('name = "auto"', 'a Gaussian process, then TPE; or "tpe", "gp", "random", "grid"')),
        *("", "[pruner]", _line('name = "asha"', 'pauses trials that fall behind; or "hyperband", "median", "none"')),
    ]
    return "".join(f"{line}\n" for line in lines)


def _objective(max_clean_drop: str, sigma: float, fraction: float) -> list[str]:
    return [
        _line("[objective]", "the score: a weighted mean of accuracies; the weights sum to 1"),
        _line("clean = 0.5", "weight of the accuracy on clean images"),
        max_clean_drop,
        "",
        "[[objective.perturbations]]",
        'name = "gaussian-noise"',
        _line(f"sigma = {sigma}", "standard deviation, for pixel values from 0 to 1"),
        "weight = 0.25",
        "",
        "[[objective.perturbations]]",
        'name = "pixel-recolor"',
        _line(f"fraction = {fraction}", "share of the pixels"),
        "weight = 0.25",
    ]


def _line(setting: str, comment: str) -> str:
    return f"{setting:<{COMMENTS_AT}}  # {comment}"


def _name(file: Path) -> str:
    """The file's name, made a valid name of a study."""
    return _printable(file.stem).replace("\\", "_").lstrip(" -")[:100] or "study"


def _printable(text: str) -> str:
    """The name of a folder or file, made safe for a comment or a study's name."""
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def _quoted(text: str) -> str:
    """As TOML."""
    return tomli_w.dumps({"text": text}).removeprefix("text = ").removesuffix("\n")
