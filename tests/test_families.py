"""Every family of networks: the library's own logits, units that run in order, frozen parts that stay as they are,
weights from files, checkpoints that go on equally. Small networks of the library's classes; whole ones are in
benchmarks/networks.py.
"""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from support.families import SIZE, SMALL, is_random, small
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.doors.network import NETWORKS
from hpo.errors import WeightsError
from hpo.vision import resnet_layers
from hpo.vision.classifier import Classifier, build_network, read_weights
from hpo.vision.data.images import Split
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.torchvision_network import TorchvisionNetwork
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.averaging import measure_batch_norms
from hpo.vision.training.checkpoints import checkpoint_as_bytes, checkpoint_from_bytes, weights_as_bytes
from hpo.vision.training.head import fitted_head
from hpo.vision.training.loop import Training
from hpo.vision.training.recipe import Recipe

FP32 = Compute(torch.device("cpu"), bf16=False)
BF16 = Compute(torch.device("cpu"), bf16=True)
TIMM = ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"]
NAMES = [*SMALL, *TIMM]
Layout = resnet_layers.Layout


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("small_networks")
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


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(name: str, side: str) -> None:
    whole = network(name)
    count = len(whole.family.units(whole.module))
    for frozen in range(count + 1):
        net = Classifier(copy.deepcopy(whole.module), whole.family, copy.deepcopy(whole.normalise), frozen, side)
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
                    parameter.sub_(1 + parameter.grad)
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


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("name", NAMES)
def test_the_fast_path_gives_the_networks_logits(name: str) -> None:
    net = network(name).eval()
    pixels, _ = a_batch()
    with torch.no_grad():
        expected = net(pixels)
    torch.testing.assert_close(Inference(net, FP32)(pixels), expected, rtol=1e-3, atol=1e-3)
    assert (Inference(net, BF16)(pixels) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("name", NAMES)
def test_the_fitted_head_is_better_than_none_and_in_its_place(name: str) -> None:
    images, labels = a_batch()
    pixels = (images * 255).byte().permute(0, 2, 3, 1).numpy()
    train = Split(pixels, np.arange(6), labels.numpy(), np.arange(6))
    source = network(name).eval()
    head = fitted_head(source, train, FP32, label_smoothing=0.0)
    fitted = build_network(name, 5, {**source.module.state_dict(), **head}, SIZE, 0, seed=1).eval()
    assert head.keys() == {f"{fitted.head_name}weight", f"{fitted.head_name}bias"}
    assert F.cross_entropy(fitted(images), labels) < math.log(5)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_from_a_file_of_a_wrapped_network_with_other_classes(tmp_path: Path, name: str) -> None:
    source, file = network(name, classes=9), tmp_path / "weights.safetensors"
    learned = source.module.state_dict()
    file.write_bytes(weights_as_bytes(source))
    torch.save({"state_dict": {f"module.{k}": t for k, t in learned.items()}}, tmp_path / "w.pth")
    for path in (file, tmp_path / "w.pth"):
        weights = read_weights(name, str(path))
        other = build_network(name, 5, weights, SIZE, 0, seed=3)
        head = other.head_name
        for key, tensor in other.module.state_dict().items():
            assert key.startswith(head) or torch.equal(tensor, learned[key]), key
        assert other.head.linear.out_features == 5
        same = build_network(name, 9, weights, SIZE, 0, seed=3)
        assert torch.equal(same.head.linear.weight, source.head.linear.weight)
    del weights[next(key for key in weights if key.endswith("weight") and head not in key)]
    with pytest.raises(WeightsError, match=f"do not fit model.name = '{name}'.* is missing"):
        build_network(name, 5, weights, SIZE, 0, seed=3)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("name", NAMES)
def test_a_training_restored_from_a_checkpoint_goes_on_equally(name: str) -> None:
    """Also in another process, whose random numbers are others; with averaged weights, whose BatchNorm is measured."""

    def a_training() -> Training:
        recipe = Recipe(2, 6, 0.01, 1e-3, 0.1, Augmentation(0, [], False, 0.5), 0, "adamw")
        return Training(build_network(name, 5, {}, SIZE, 2, 0), recipe, FP32)

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
    expected, found = whole.tensors(), resumed.tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert torch.equal(Inference(whole.averaged, FP32)(pixels), Inference(resumed.averaged, FP32)(pixels))


FAMILIES = [kind for kind in NETWORKS.loadable().values() if issubclass(kind, TorchvisionNetwork)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_tables_say_what_torchvision_has(family: type[TorchvisionNetwork]) -> None:
    """Names, weights from ImageNet, units and how many millions of weights there are."""
    models = torchvision.models
    modules = {models.get_model_builder(name).__module__ for name in family.names}
    assert {*family.names} == {
        name for name in models.list_models(models) if models.get_model_builder(name).__module__ in modules
    }
    assert family.imagenet == {name: models.get_model_weights(name).DEFAULT.url for name in family.names}
    on_meta = [*family.names] if family.__name__ != "RegNets" else []  # they read numbers from a tensor
    for name in [*on_meta, *([] if on_meta else family.names[:1])]:
        with torch.device("meta" if on_meta else "cpu"):
            module = family.build(name, 1000, family.input_sizes.get(name, range(64, 65)).start * 2)
        weights = sum(parameter.numel() for parameter in module.parameters())
        assert len(family.units(module)) == family.freezable[name], name
        assert family.million_weights[name] == pytest.approx(weights / 1e6, abs=0.6), name


def test_parameters_without_decay_are_norms_biases_tokens_and_positions() -> None:
    for name, expected in {
        "timm/test_vit": {"cls_token", "pos_embed"},
        "vit_b_32": {"class_token", "encoder.pos_embedding"},
    }.items():
        net = build_network(name, 5, {}, 32, 0, seed=0)
        names = {id(parameter): key for key, parameter in net.module.named_parameters()}
        assert {names[id(parameter)] for parameter in net.undecayed} == expected
        free = Training(net, Recipe(1, 4, 0.1, 0.1, 0, Augmentation(0, [], False), 0), FP32).optimizer.groups[1][0]
        assert {names[id(parameter)] for parameter in free if parameter.ndim > 1} == expected


@pytest.mark.usefixtures("small_networks")
def test_positions_of_another_input_size_are_interpolated() -> None:
    for name, key in (("timm/test_vit", "pos_embed"), ("vit_b_16", "encoder.pos_embedding")):
        large = build_network(name, 5, {}, 64, 0, seed=0)
        other = build_network(name, 5, dict(large.module.state_dict()), 32, 0, seed=1)
        assert other.module.state_dict()[key].shape[1] == 5
        assert torch.equal(other.module.state_dict()[key][:, 0], large.module.state_dict()[key][:, 0])


@pytest.mark.usefixtures("small_networks")
def test_a_densenets_weights_under_the_names_of_older_releases_fit() -> None:
    """Those from ImageNet are such."""
    source = build_network("densenet121", 5, {}, SIZE, 0, seed=0).module.state_dict()
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor for name, tensor in source.items()}
    assert older.keys() != source.keys()
    found = build_network("densenet121", 5, older, SIZE, 0, seed=1).module.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in found.items())
