"""Weights between a plain training's and a robust one's, which may keep the one's clean accuracy and the other's
robustness (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903).
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from hpo.vision.classifier import Classifier, Weights
from hpo.vision.inference import Inference
from hpo.vision.scoring import Accuracy, EvaluationSet, evaluate
from hpo.vision.training.averaging import measure_batch_norms
from hpo.vision.training.batches import TrainingImages
from hpo.vision.training.loop import Training, features_for_batch_norms

SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the robust training's weights, beside all; the rest is the plain one's."""


def interpolate(
    training: Training,
    accuracies: dict[str, Accuracy],
    plain: Weights,
    images: TrainingImages,
    build: Callable[[Weights], Classifier],
    tuning: EvaluationSet,
    score: Callable[[Mapping[str, float]], float],
) -> tuple[float, dict[str, Accuracy]]:
    """Scores a training's weights mixed with `plain` on the tuning images, and makes the best `training.averaged`; its
    share, 1 if nothing is gained, and its accuracies. accuracies: those of the training's own weights; build: a network
    with these weights, of which no unit is frozen; score: of accuracies by condition, 0 to 1.

    All units are mixed, frozen ones too: theirs are the initial weights, where `plain` may have learned others.
    BatchNorm's statistics are measured anew for each mixture, on training images augmented as in the training.
    """
    own = {name: tensor.cpu() for name, tensor in training.averaged.module.state_dict().items()}
    frozen_part = Inference(build(plain).frozen_part, training.compute)
    features = features_for_batch_norms(training, images, frozen_part)
    mixtures = [(1.0, accuracies, training.averaged)]
    for share in SHARES:
        network = build({name: _between(plain[name], tensor, share) for name, tensor in own.items()})
        network = network.to(training.compute.device)
        measure_batch_norms(network.trainable_part, features, training.compute)
        mixtures.append((share, evaluate(Inference(network, training.compute), tuning), network))
    scores = [score({name: each.fraction for name, each in found.items()}) for _, found, _ in mixtures]
    share, found, training.averaged = mixtures[scores.index(max(scores))]
    return share, found


def _between(plain: Tensor, own: Tensor, share: float) -> Tensor:
    return plain.lerp(own, share) if own.is_floating_point() else own
