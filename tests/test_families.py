"""Every family of networks: the library's own logits, units that run in order, frozen parts that stay as they are, weights
from files, checkpoints that go on equally. With small networks of the library's classes; whole ones: benchmarks/networks.py.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from support.commands import Hpo
from support.families import SIZE, SMALL, is_random, small
from support.studies import make_spec, write_study
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.doors.network import NETWORKS, family_of, network_names
from hpo.errors import InputError, WeightsError
from hpo.study_file.images import ImageSpec
from hpo.vision import resnet_layers
from hpo.vision.classifier import Classifier, Normalise, build_network, read_weights
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.torchvision_network import TorchvisionNetwork
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.averaging import measure_batch_norms
from hpo.vision.training.checkpoints import checkpoint_as_bytes, checkpoint_from_bytes, weights_as_bytes
from hpo.vision.training.loop import Recipe, Training

FP32 = Compute(torch.device("cpu"), bf16=False)
BF16 = Compute(torch.device("cpu"), bf16=True)
TIMM = ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"]
NAMES = [*SMALL, *TIMM]
Layout = resnet_layers.Layout


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    layout: Layout = (resnet_layers.Bottleneck, (1, 2, 1, 1), {"groups": 4, "group_width": 4})
    monkeypatch.setattr(torchvision.models, "get_model", small)
    monkeypatch.setitem(resnet_layers.RESNETS, "resnext50_32x4d", layout)


def network(name: str, frozen: int = 0, side: str = "input", classes: int = 5) -> Classifier:
    """With BatchNorm statistics as training leaves them, which an unfrozen BatchNorm moves away from."""
    net = build_network(name, classes, {}, SIZE, frozen, 0, side)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr, operator]
    return net


def a_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, SIZE, SIZE, generator=generator), torch.arange(6) % 5


def theirs(name: str, net: Classifier) -> nn.Module:
    """The library's own network with the same weights."""
    if name in TIMM:
        import timm

        size = {"img_size": SIZE} if "vit" in name else {}
        module: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=5, **size)
    else:
        module = small(name, num_classes=5, **({"image_size": SIZE} if name == "vit_b_16" else {}))
    module.load_state_dict(net.module.state_dict())
    return module


@pytest.mark.parametrize("name", NAMES)
def test_units_and_head_are_the_librarys_network_and_leave_features_as_they_are(name: str) -> None:
    net = network(name).eval()
    images = net.normalise(a_batch()[0])
    features = images
    for unit in net.family.units(net.module):
        before = features.clone()
        following = unit(features)
        assert torch.equal(features, before), "kept features are used again"
        features = following
    expected = theirs(name, net).eval()(images)
    assert expected.std() > 0
    torch.testing.assert_close(net.family.head(net.module)(features), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(net(a_batch()[0]), expected, rtol=1e-5, atol=1e-5)
    assert not is_random(net.train())
    state = torch.get_rng_state()
    net(a_batch()[0])
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn in training"


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(name: str, side: str) -> None:
    whole = network(name)
    count = len(whole.family.units(whole.module))
    for frozen in range(count + 1):
        net = Classifier(
            copy.deepcopy(whole.module), whole.family, copy.deepcopy(whole.normalise), frozen, side
        )
        units = net.family.units(net.module)
        parts = [*units, net.family.head(net.module)]
        before = [{key: tensor.clone() for key, tensor in part.state_dict().items()} for part in parts]
        everything = {key: tensor.clone() for key, tensor in net.module.state_dict().items()}
        pixels, labels = a_batch()
        F.cross_entropy(net(pixels), labels).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None
                    parameter -= 1 + parameter.grad
        kept = set(range(frozen)) if side == "input" else set(range(count - frozen, count))
        moved = 0
        for number, (old, part) in enumerate(zip(before, parts, strict=True)):
            now = part.state_dict()
            constant = {key for key in old if key.endswith(("relative_position_index", "relative_coords_table"))}
            same = {key for key in old if torch.equal(old[key], now[key])}
            assert same == (set(old) if number in kept else constant), f"{frozen} frozen, unit {number}"
            moved += len(old) - len(same)
        now = net.module.state_dict()
        assert sum(not torch.equal(everything[key], now[key]) for key in now) == moved, "units share nothing"


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_path_gives_the_networks_logits(name: str) -> None:
    net = network(name).eval()
    pixels, _ = a_batch()
    with torch.no_grad():
        expected = net(pixels)
    torch.testing.assert_close(Inference(net, FP32)(pixels), expected, rtol=1e-3, atol=1e-3)
    assert (Inference(net, BF16)(pixels) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_from_a_file_of_a_wrapped_network_with_other_classes(tmp_path: Path, name: str) -> None:
    source, file = network(name, classes=9), tmp_path / "weights.safetensors"
    file.write_bytes(weights_as_bytes(source))
    torch.save({"state_dict": {f"module.{k}": t for k, t in source.module.state_dict().items()}}, tmp_path / "w.pth")
    for path in (file, tmp_path / "w.pth"):
        weights = read_weights(name, str(path))
        other = build_network(name, 5, weights, SIZE, 0, seed=3)
        head = other.head_name
        for key, tensor in other.module.state_dict().items():
            assert key.startswith(head) or torch.equal(tensor, source.module.state_dict()[key]), key
        assert other.head.linear.out_features == 5
        same = build_network(name, 9, weights, SIZE, 0, seed=3)
        assert torch.equal(same.head.linear.weight, source.head.linear.weight)
    del weights[next(key for key in weights if key.endswith("weight") and head not in key)]
    with pytest.raises(WeightsError, match=f"do not fit model.name = '{name}'.* is missing"):
        build_network(name, 5, weights, SIZE, 0, seed=3)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", NAMES)
def test_a_training_restored_from_a_checkpoint_goes_on_equally(name: str, side: str) -> None:
    """Also in another process, whose random numbers are others; with averaged weights, whose BatchNorm is measured."""

    def a_training() -> Training:
        recipe = Recipe(2, 6, 0.01, 1e-3, 0.1, Augmentation(0, [], False, 0.5), 0, "adamw")
        return Training(build_network(name, 5, {}, SIZE, 2, 0, side), recipe, FP32)

    def go_on(training: Training, number: int) -> None:
        training.network.train()
        training.runner.step.rate.fill_(0.01)
        pixels, labels = a_batch(number)
        features = training.frozen_part(pixels)
        training.runner.run(features, labels)
        assert training.average is not None
        training.average.take()
        measure_batch_norms(training.averaged.trainable_part, [features], FP32)

    whole = a_training()
    go_on(whole, 1)
    checkpoint = checkpoint_from_bytes(checkpoint_as_bytes(whole.tensors(), {}))
    assert checkpoint is not None
    go_on(whole, 2)
    torch.manual_seed(99)
    resumed = a_training()
    resumed.restore(checkpoint.tensors)
    go_on(resumed, 2)
    pixels, _ = a_batch(3)
    assert whole.tensors().keys() == resumed.tensors().keys()
    assert all(torch.equal(tensor, resumed.tensors()[key]) for key, tensor in whole.tensors().items())
    assert torch.equal(Inference(whole.averaged, FP32)(pixels), Inference(resumed.averaged, FP32)(pixels))
