"""Small real images in the layouts that users have: scans of digits, written as JPEG files."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WNIDS = ("n01", "n02", "n03")
IMAGES_PER_CLASS = 6


def _scan(number: int, size: int) -> Image.Image:
    scan = (load_digits().images[number] * 15).astype(np.uint8)
    return Image.fromarray(scan).resize((size, size))


def write_tiny_imagenet(folder: Path) -> Path:
    """TinyImageNet's own layout, three classes, at folder/tiny-imagenet-200; grey and colour images."""
    top = folder / "tiny-imagenet-200"
    (top / "val" / "images").mkdir(parents=True)
    (top / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    annotations = []
    for label, wnid in enumerate(WNIDS):
        images = top / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("")
        for i in range(IMAGES_PER_CLASS):
            scan = _scan(10 * i + label, 64)
            (scan if i else scan.convert("RGB")).save(images / f"{wnid}_{i}.JPEG")
        _scan(100 + label, 64).save(top / "val" / "images" / f"val_{label}.JPEG")
        annotations.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(annotations))
    return top


def write_class_folders(folder: Path, classes: tuple[str, ...] = ("cats", "dogs"), each: int = 10) -> Path:
    """A folder a class, images of several sizes."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            _scan(10 * i + label, 24 + 4 * i).save(folder / name / f"{i}.png")
    return folder


def zip_tree(folder: Path, archive: Path) -> Path:
    """A zip with `folder` at its top."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    return archive
