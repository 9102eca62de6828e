"""How wrong images chosen by gradient make a baseline, and what a network trained on random perturbations keeps.

    python benchmarks/attacks.py --archive tiny-imagenet-50.zip --weights resnet18.safetensors --folder ~/attacks

Both networks are trained for 4 epochs on 100 images a class, seed 0, and kept in the folder. The attacks are made
against the baseline, on `--images` of the locked test images, evenly spread over the classes. With
`pip install adversarial-robustness-toolbox` its projected gradient descent is compared with ours, on the same weights
and images.
"""

import argparse
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_objective import robust_accuracy

from hpo.doors.objective import Trial
from hpo.doors.perturbation import PERTURBATIONS
from hpo.objectives.robust_accuracy import RobustAccuracy
from hpo.study_file.reading import load_spec
from hpo.vision.attacks import Attacked, attacked
from hpo.vision.classifier import Classifier
from hpo.vision.data.images import Split
from hpo.vision.inference import Inference
from hpo.vision.scoring import evaluate, evaluation_set
from hpo.vision.training.checkpoints import weights_from_bytes

HERE = Path(__file__).parent
PARAMS = {"batch_size": 64, "learning_rate": 0.02, "frozen_layers": 0, "initial_weights": "pretrained"}
STRENGTHS = {"baseline": 0.0, "robust": 1.0}
NOISE, PIXELS = {"name": "adversarial-noise"}, {"name": "adversarial-pixels"}
ATTACKS: list[dict[str, Any]] = [
    NOISE,
    *(PIXELS | {"restarts": starts} for starts in (1, 3)),
    *(PIXELS | {"restarts": starts, "positions": "chosen"} for starts in (1, 3)),
    *(PIXELS | {"fraction": fraction} for fraction in (0.01, 0.02)),
    {"name": "fgsm"},
    {"name": "pgd"},
]
PGD = {"name": "pgd", "epsilon": 2 / 255, "steps": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--only", help="attacks whose settings contain this text")
    given = parser.parse_args()
    overrides = [f"data.archive={given.archive}", f"model.weights={given.weights}"]
    overrides += ["data.images_per_class=100", "training.epochs=4"]
    objective = robust_accuracy(load_spec(HERE / "time_to_target.toml", overrides), None, given.folder)
    networks = {name: trained(objective, strength, given.folder / name) for name, strength in STRENGTHS.items()}
    images = objective.images.test.evenly_spread(given.images)
    clean = torch.from_numpy(images.pixels[images.rows])
    print(objective.compute.description, *scores(objective, networks, images, clean), sep=" | ")
    for settings in [each for each in ATTACKS if not given.only or given.only in str(each)]:
        started = time.perf_counter()
        perturbation = PERTURBATIONS.find(settings["name"]).model_validate({"weight": 1.0, **settings})
        pixels = attacked(perturbation, networks["baseline"], images, objective.compute, 0, print, 1)  # type: ignore[arg-type]
        took = f"{time.perf_counter() - started:.0f} s"
        print(
            settings, *scores(objective, networks, images, pixels), *sizes(clean, pixels), took, sep=" | ", flush=True
        )
    if importlib.util.find_spec("art"):
        compare_with_art(objective, networks["baseline"], images)


def trained(objective: RobustAccuracy, strength: float, file: Path) -> Classifier:
    params = PARAMS | {"augmentation_strength": strength}
    if not file.exists():
        *_, last = objective.run(Trial(0, params, seed=0, steps=objective.spec.steps))
        file.write_bytes(last.keep()["weights.safetensors"])
    return objective.network(params, weights_from_bytes(file.read_bytes())).to(objective.compute.device)


def scores(
    objective: RobustAccuracy, networks: dict[str, Classifier], images: Split, pixels: torch.Tensor
) -> Iterator[str]:
    """pixels: the images perturbed, uint8 (n, height, width, 3)."""
    for name, network in networks.items():
        scored = evaluation_set(images, {"these": pixels}, objective.compute.device, at_once=250)
        accuracy = evaluate(Inference(network, objective.compute), scored)["these"]
        yield f"{name} {accuracy.correct}/{accuracy.total} ({100 * accuracy.fraction:.1f} %)"


def sizes(clean: torch.Tensor, pixels: torch.Tensor) -> Iterator[str]:
    change = pixels.float() - clean.float()
    yield f"root mean square {change.square().mean().sqrt() / 255:.4f}"
    yield f"largest {change.abs().max():.0f}/255"
    yield f"at most {(pixels != clean).any(3).flatten(1).sum(1).max()} pixels"


def compare_with_art(objective: RobustAccuracy, network: Classifier, images: Split) -> None:
    """Both in fp32, from one random start, judged by the same network in fp32."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    victim = Attacked(network).part.cpu()
    size = images.pixels.shape[1:]
    classifier = PyTorchClassifier(
        victim, torch.nn.CrossEntropyLoss(), (size[2], *size[:2]), len(objective.images.classes), clip_values=(0, 1)
    )
    theirs = ProjectedGradientDescentPyTorch(
        classifier,
        eps=PGD["epsilon"],
        eps_step=2.5 * PGD["epsilon"] / PGD["steps"],
        max_iter=PGD["steps"],
        num_random_init=1,
        batch_size=64,
        verbose=False,
    )
    clean = torch.from_numpy(images.pixels[images.rows]).permute(0, 3, 1, 2).float().div(255)
    theirs_made = torch.from_numpy(theirs.generate(clean.numpy(), np.asarray(images.labels)))
    perturbation = PERTURBATIONS.find("pgd").model_validate({"weight": 1.0, **PGD})
    ours = attacked(perturbation, network, images, objective.compute, 0, print, 1)  # type: ignore[arg-type]
    labels = torch.from_numpy(images.labels)
    for name, made in {
        "ours, 8 bits": ours.permute(0, 3, 1, 2).float().div(255),
        "theirs, 8 bits": theirs_made.mul(255).round().div(255),
        "theirs, floats": theirs_made,
    }.items():
        with torch.no_grad():
            right = sum(
                int((victim(x).argmax(1) == y).sum()) for x, y in zip(made.split(64), labels.split(64), strict=True)
            )
        print(f"pgd, 2/255, 20 steps, 1 restart: {name}: {right}/{len(labels)} ({100 * right / len(labels):.1f} %)")


if __name__ == "__main__":
    main()
