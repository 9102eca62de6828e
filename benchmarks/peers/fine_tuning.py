"""One trial as a competent user of PyTorch writes it: what all the peers run.

ImageFolder, a DataLoader with worker processes, torchvision's transforms for each image, fp32, SGD with the same
momentum, schedule, weight decay and label smoothing as hpo's own trials. It knows nothing of hpo: it is given a folder
with the training images as files, the tuning images (clean and perturbed, the same as hpo scores) as one .npz, and the
pretrained weights.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet, resnet18

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGMA, FRACTION = 0.1, 0.05
BATCH_SIZES = [32, 64, 128, 256, 512]
SCORE_WEIGHTS = {"clean": 0.5, "gaussian-noise": 0.25, "pixel-recolor": 0.25}
WARMUP_SHARE = 0.1


class RandomPerturbation:
    """Half of the images: noise or recoloured pixels, up to `strength` times twice the severity that is scored."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        which, how_much = torch.rand(2).tolist()
        if which < 0.25:
            sigma = how_much * self.strength * 2 * SIGMA
            return (image + torch.randn_like(image) * sigma).clamp(0, 1)
        if which < 0.5:
            fraction = how_much * self.strength * 2 * FRACTION
            chosen = torch.rand(1, *image.shape[1:]) < fraction
            return torch.where(chosen, torch.rand_like(image), image)
        return image


def train_loader(folder: Path, batch_size: int, strength: float, workers: int) -> DataLoader:
    settings = json.loads((folder / "settings.json").read_text())
    size = settings["size"]
    steps = [transforms.RandomCrop(size, padding=size // 16, padding_mode="reflect")]
    if settings["horizontal_flip"]:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), RandomPerturbation(strength), transforms.Normalize(MEAN, STD)]
    images = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    one_is_left = len(images) % batch_size == 1  # of which BatchNorm can make nothing
    return DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=one_is_left
    )


def build_model(folder: Path, classes: int, frozen_layers: int) -> ResNet:
    model = resnet18(num_classes=classes)
    if (weights := folder / "weights.safetensors").exists():
        tensors = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("fc.")}
        model.load_state_dict(tensors, strict=False)
    for unit in frozen_units(model, frozen_layers):
        unit.requires_grad_(False)
    return model


def frozen_units(model: ResNet, frozen_layers: int) -> list[nn.Module]:
    """The stem, then the residual blocks, from the input."""
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    return [stem, *model.layer1, *model.layer2, *model.layer3, *model.layer4][:frozen_layers]


def load_tuning(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Normalised images by condition, float32 (n, 3, height, width), and labels."""
    arrays = np.load(folder / "tuning.npz")
    normalize = transforms.Normalize(MEAN, STD)
    images = {name: normalize(torch.from_numpy(arrays[name]).float() / 255) for name in SCORE_WEIGHTS}
    return images, torch.from_numpy(arrays["labels"])


@torch.no_grad()
def accuracies(model: nn.Module, images: dict[str, Tensor], labels: Tensor) -> dict[str, float]:
    model.eval()
    return {
        name: sum(
            int((model(batch).argmax(1) == truth).sum())
            for batch, truth in zip(pixels.split(250), labels.split(250), strict=True)
        )
        / len(labels)
        for name, pixels in images.items()
    }


def train(config: dict, folder: Path, epochs: int, loader_workers: int, seed: int) -> Iterator[dict[str, float]]:
    """Yields the score and the accuracies after each epoch."""
    torch.manual_seed(seed)
    tuning, labels = load_tuning(folder)
    loader = train_loader(folder, config["batch_size"], config["augmentation_strength"], loader_workers)
    model = build_model(folder, len(loader.dataset.classes), config["frozen_layers"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=config["learning_rate"], momentum=0.9, nesterov=True)
    updates = epochs * len(loader)

    def schedule(update: int) -> float:
        progress = update / updates
        if progress < WARMUP_SHARE:
            return (progress + WARMUP_SHARE / 10) / (WARMUP_SHARE * 1.1)
        return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        model.train()
        for unit in frozen_units(model, config["frozen_layers"]):
            unit.eval()  # else frozen BatchNorm would still move its statistics
        for images, targets in loader:
            optimizer.zero_grad()
            criterion(model(images), targets).backward()
            optimizer.step()
            scheduler.step()
        measured = accuracies(model, tuning, labels)
        yield {"score": sum(SCORE_WEIGHTS[name] * measured[name] for name in SCORE_WEIGHTS), **measured}
