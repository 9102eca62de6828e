"""The traces of JPEG's compression."""

import io
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hpo.doors.perturbation import LeveledPerturbation

if TYPE_CHECKING:
    from torch import Tensor


class Jpeg(LeveledPerturbation):
    """Compresses images as JPEG does."""

    quality: Annotated[int, Field(ge=1, le=99)]
    """Pillow's, from 1 to 99."""
    severity = "quality"
    levels = (65, 58, 50, 40, 25)

    @property
    def scored_severity(self) -> float:
        """What the quality lacks of 100."""
        return 100 - self.quality

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """On the CPU, image by image: a GPU waits for it. Images are rounded to 8 bits first, as files are."""
        import numpy as np
        import torch
        from PIL import Image

        compressed = pixels.cpu().clone()
        rounded = (compressed * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, amount in enumerate(severity.tolist()):
            if amount > 0:
                stream = io.BytesIO()
                Image.fromarray(rounded[number]).save(stream, "JPEG", quality=max(1, round(100 - amount)))
                decoded = np.asarray(Image.open(stream).convert("RGB"))
                compressed[number] = torch.from_numpy(decoded.copy()).permute(2, 0, 1) / 255
        return compressed.to(pixels.device)
