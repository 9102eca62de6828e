"""The fast path against a slow one: folded parts, features that are kept, the fitted head, averaged weights."""

import copy

import numpy as np
import pytest
import torch
from support.perturbations import perturbations
from torch import Tensor, nn

from hpo.study_file.images import DataSpec
from hpo.vision import scoring
from hpo.vision.classifier import Classifier, build_network
from hpo.vision.data.images import ImageSet, load_images
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.scoring import EvaluationSet, build_evaluation_set, embedded, evaluate
from hpo.vision.training.averaging import ETA
from hpo.vision.training.head import fitted_head

PERTURBATIONS = perturbations(sigma=0.3, fraction=0.2)
FP32 = Compute(torch.device("cpu"), bf16=False)
BF16 = Compute(torch.device("cpu"), bf16=True)


@pytest.fixture(scope="module")
def digits(data_root: object) -> ImageSet:
    data = DataSpec(name="digits", root=str(data_root), validation_fraction=0.08, images_per_class=40)
    return load_images(data, 32, seed=0)


def network(name: str = "resnet18", frozen: int = 0) -> Classifier:
    """With BatchNorm statistics as training leaves them: nothing like 0 and 1."""
    net = build_network(name, 10, {}, 32, frozen, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr, operator]
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_folded_network_gives_the_logits_of_the_network(name: str) -> None:
    net, pixels = network(name), torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        expected = net(pixels)
    torch.testing.assert_close(Inference(net, FP32)(pixels), expected, rtol=1e-3, atol=1e-3)
    in_bf16 = Inference(net, BF16)(pixels)
    assert in_bf16.dtype == torch.float32
    assert (in_bf16 - expected).abs().max() < 0.05 * expected.abs().max()


def test_folding_changes_nothing_of_the_network() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    Inference(net, BF16)(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.fixture(scope="module")
def evaluation_set(digits: ImageSet) -> EvaluationSet:
    return build_evaluation_set(digits.tuning, PERTURBATIONS, FP32.device)


@pytest.fixture(scope="module")
def slow_correct(evaluation_set: EvaluationSet) -> dict[str, int]:
    """Image by image, in fp32, through the network as it was trained, with however many layers frozen."""
    net = network()
    with torch.no_grad():
        return {
            name: sum(
                int(net(image[None].float() / 255).argmax() == label)
                for image, label in zip(pixels, evaluation_set.labels, strict=True)
            )
            for name, pixels in evaluation_set.conditions.items()
        }


@pytest.mark.parametrize("frozen", [0, 3, 9])
def test_accuracies_of_the_fast_path_agree_with_a_slow_reference(
    evaluation_set: EvaluationSet, slow_correct: dict[str, int], frozen: int
) -> None:
    """Exactly in fp32; in bf16 but for a few images whose two best classes are as good as equal."""
    net = network(frozen=frozen)
    for compute, may_differ in ((FP32, 0), (BF16, 0.02 * len(evaluation_set.labels))):
        features = embedded(evaluation_set, Inference(net.frozen_part, compute))
        assert features is not None
        fast = evaluate(Inference(net.trainable_part, compute), features)
        for name, correct in slow_correct.items():
            assert abs(fast[name].correct - correct) <= may_differ, (name, compute)


def test_features_that_are_too_large_are_not_kept(digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    images = build_evaluation_set(digits.tuning, [], FP32.device)
    monkeypatch.setattr(scoring, "MAX_KEPT_BYTES", 1000)
    assert embedded(images, Inference(network().frozen_part, FP32)) is None


def test_the_fitted_head_knows_the_training_images(digits: ImageSet) -> None:
    net = network()
    head = fitted_head(net, digits.train, FP32, label_smoothing=0.1)
    images = EvaluationSet({"clean": pixels_of(digits)}, torch.from_numpy(digits.train.labels))
    chance = evaluate(Inference(net, FP32), images)["clean"].fraction
    net.module.fc.load_state_dict({name.removeprefix("fc."): tensor for name, tensor in head.items()})
    fitted = evaluate(Inference(net, FP32), images)["clean"].fraction
    assert chance < 0.3 < 0.8 < fitted


def pixels_of(digits: ImageSet) -> Tensor:
    return torch.from_numpy(np.array(digits.train.pixels[digits.train.rows])).permute(0, 3, 1, 2)


def test_averaging_is_shamirs_and_zhangs(digits: ImageSet) -> None:
    """Against their recursion, written out: x̄ₜ = (1 - (η+1)/(t+η)) x̄ₜ₋₁ + (η+1)/(t+η) xₜ."""
    from test_training import start

    training = start()
    expected = 0.0
    for t, value in enumerate((3.0, -1.0, 4.0, 1.5), 1):
        with torch.no_grad():
            training.network.module.fc.bias.fill_(value)
        training.average.take()
        share = (ETA + 1) / (t + ETA)
        expected = (1 - share) * expected + share * value
        assert training.averaged.module.fc.bias[0].item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_norm_with_an_activation_keeps_it() -> None:
    """timm's is below nn.BatchNorm2d; folding it as one would lose the activation."""
    from timm.layers import BatchNormAct2d

    part = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)).eval()
    maps = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Inference(part, FP32)(maps), part(maps).detach())
