"""What is kept with a trial of images beside its accuracies: counts, speed, and what made it."""

from collections.abc import Mapping
from typing import Any

import torch

from hpo.vision.training.loop import EpochResult, Training


def attributes_of(
    result: EpochResult, training: Training, images: int, mean: float | None, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """In JSON's types. images: how many the trial is scored on; mean: of its perturbed accuracies; fingerprints: of the
    images that were chosen by gradient for it.
    """
    device = training.compute.description
    images_of = {name: each.total for name, each in result.accuracies.items() if each.total != images}
    return {
        **({} if mean is None else {"mean_perturbed_accuracy": mean}),
        "images": images,
        **({"images_of": images_of} if images_of else {}),
        "diverged": result.diverged,
        **({} if (share := result.interpolated_share) is None else {"interpolated_share": share}),
        "images_per_second": round(result.images_per_second, 1),
        "device": device,
        "made_by": {
            "device": device,
            "threads": torch.get_num_threads(),
            "steps": training.runner.how,
            **fingerprints,
        },
        **({"micro_batch_size": training.portions.micro_batch} if training.was_split else {}),
    }
