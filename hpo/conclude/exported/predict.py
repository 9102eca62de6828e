"""python predict.py IMAGE …: which class each image is of. Needs torch, torchvision and safetensors, no hpo."""

import json
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision.models import get_model
from torchvision.transforms import functional as F

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))


def load_model() -> torch.nn.Module:
    """The network in eval mode: takes what `prepare` gives, gives logits (n, classes)."""
    model = get_model(CONFIG["network"], num_classes=len(CONFIG["classes"]), **CONFIG["arguments"])
    model.load_state_dict(load_file(HERE / "model.safetensors"))
    model.eval()
    return model


def read_image(path: str | Path) -> torch.Tensor:
    """uint8 (3, image_size, image_size): upright, scaled and cropped to the centre where the size differs."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = (CONFIG["image_size"], CONFIG["image_size"])
    return F.pil_to_tensor(image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR))


def prepare(pixels: torch.Tensor) -> torch.Tensor:
    """Network inputs of uint8 images (n, 3, any height, any width)."""
    size = (CONFIG["input_size"], CONFIG["input_size"])
    floats = pixels.float() / 255
    if floats.shape[-2:] != size:
        floats = torch.nn.functional.interpolate(floats, size, mode="bilinear", antialias=True)
    return F.normalize(floats, CONFIG["mean"], CONFIG["std"])


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python predict.py IMAGE ...")
    model = load_model()
    for path in sys.argv[1:]:
        try:
            pixels = read_image(path)[None]
        except OSError as error:
            sys.exit(f"{path} cannot be read: {error}")
        with torch.no_grad():
            confidence, label = model(prepare(pixels))[0].softmax(0).max(0)
        print(f"{path}: {CONFIG['names'][label]} ({100 * confidence:.1f} %)")  # noqa: T201
