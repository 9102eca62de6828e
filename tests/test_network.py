"""The network: frozen parts that stay frozen, weights that fit or say why not."""

import argparse
import os
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hpo.errors import WeightsError
from hpo.vision.classifier import Classifier, Weights, build_network, fingerprint, read_weights
from hpo.vision.networks.resnet import ResNets
from hpo.vision.resnet_layers import RESNETS, build_resnet
from hpo.vision.training.checkpoints import weights_as_bytes
from hpo.vision.weights_file import weights_file, without_prefix


def network(frozen_layers: int = 0, seed: int = 0, classes: int = 5) -> Classifier:
    return build_network("resnet18", classes, {}, 32, frozen_layers, seed)


def take_a_step(net: Classifier) -> None:
    """One update on images that are nothing like zero mean, so that an unfrozen BatchNorm would move."""
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("frozen", range(10))
def test_training_moves_no_frozen_tensor_and_every_other(frozen: int) -> None:
    net = network(frozen)
    before = [
        {k: t.clone() for k, t in unit.state_dict().items()} for unit in [*ResNets.units(net.module), net.module.fc]
    ]
    take_a_step(net)
    after = [unit.state_dict() for unit in [*ResNets.units(net.module), net.module.fc]]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        moved = {key for key in old if not torch.equal(old[key], new[key])}
        expected = set() if number < frozen else set(old)
        assert moved == expected, f"unit {number}"


def test_a_frozen_network_predicts_as_the_same_network_unfrozen() -> None:
    pixels = torch.rand(3, 3, 32, 32)
    expected = network(0).eval()(pixels)
    for frozen in (1, 5, 9):
        assert torch.allclose(network(frozen).eval()(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_every_network_by_name_has_the_units_that_a_study_file_may_freeze(name: str) -> None:
    net = build_network(name, 7, {}, 32, ResNets.freezable[name], 0)
    assert len(ResNets.units(net.module)) == ResNets.freezable[name]
    assert net(torch.rand(2, 3, 40, 40)).shape == (2, 7)
    assert [p.requires_grad for p in net.module.fc.parameters()] == [True, True]
    assert not any(p.requires_grad for p in net.module.layer4.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
def test_a_resnet_is_torchvisions(name: str) -> None:
    """The same tensors from the same seed, the same logits, the same weights from ImageNet."""
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, name)(num_classes=7)
    torch.manual_seed(3)
    ours = build_resnet(name, 7)
    assert [key for key, _ in ours.named_modules()] == [key for key, _ in theirs.named_modules()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in theirs.state_dict().items())
    images = torch.rand(3, 3, 40, 56)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_has_torchvisions_tensors(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_resnet(name, 7), getattr(torchvision.models, name)(num_classes=7)
    assert [(key, tensor.shape) for key, tensor in ours.state_dict().items()] == [
        (key, tensor.shape) for key, tensor in theirs.state_dict().items()
    ]
    groups = [
        [module.groups for module in each.modules() if isinstance(module, torch.nn.Conv2d)] for each in (ours, theirs)
    ]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_from_a_file_but_for_the_head_of_another_task(tmp_path: Path, suffix: str) -> None:
    source, file = network(seed=1, classes=9), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.module.state_dict(), file)
    else:
        file.write_bytes(weights_as_bytes(source))
    weights = read_weights("resnet18", str(file))
    assert fingerprint(weights) == fingerprint(source.module.state_dict())
    other_task = build_network("resnet18", 5, weights, 32, 0, seed=2)
    assert torch.equal(other_task.module.conv1.weight, source.module.conv1.weight)
    assert torch.equal(other_task.module.layer4[1].bn2.running_var, source.module.layer4[1].bn2.running_var)
    assert other_task.module.fc.out_features == 5
    same_task = build_network("resnet18", 9, weights, 32, 0, seed=2)
    assert torch.equal(same_task.module.fc.weight, source.module.fc.weight)


def test_weights_that_do_not_fit_name_the_tensors(tmp_path: Path) -> None:
    weights = dict(network().module.state_dict())
    del weights["bn1.weight"]
    weights["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    weights["surplus"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        build_network("resnet18", 5, weights, 32, 0, 0)
    message = str(caught.value)
    assert "bn1.weight is missing" in message
    assert "surplus is unknown" in message
    assert "conv1.weight is (64, 3, 3, 3) instead of (64, 3, 7, 7)" in message
    with pytest.raises(WeightsError, match=r"do not fit model.name = 'resnet50'; .* and \d+ more"):
        build_network("resnet50", 5, dict(network().module.state_dict()), 32, 0, 0)


class Malice:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("malice-was-here"),)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Malice()}, "torch.pth")
    Path("plain.pth").write_bytes(pickle.dumps({"conv1.weight": Malice()}))
    for file in ("torch.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_weights("resnet18", file)
    assert not Path("malice-was-here").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    save_file({}, tmp_path / "empty.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    expected = {
        "folder.safetensors": "is a folder",
        "absent.safetensors": "does not exist",
        f"{'long' * 100}.safetensors": "cannot be read: File name too long",
        "text.pth/below.safetensors": "cannot be read: Not a directory",
        "text.safetensors": "is no .safetensors file",
        "text.pth": "cannot be read",
        "list.pth": "must hold tensors by name",
        "empty.safetensors": "must hold tensors by name",
        "weights.onnx": "must be 'imagenet', 'none', or a .safetensors or .pth file",
        "imagnet": r"file\. Did you mean 'imagenet'\?",
    }
    for name, words in expected.items():
        with pytest.raises(WeightsError, match=words) as caught:
            read_weights("resnet18", str(tmp_path / name))
        assert "\n" not in str(caught.value)


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.", "model.net.backbone."]


def tensors_of_resnet18() -> Weights:
    return {key: tensor.contiguous() for key, tensor in network(seed=1).module.state_dict().items()}


def write_under(prefix: str, file: Path, nested: str | None = None) -> Weights:
    tensors = tensors_of_resnet18()
    prefixed = {prefix + key: tensor for key, tensor in tensors.items()}
    if file.suffix == ".safetensors":
        save_file(prefixed, file)
    else:
        torch.save({"epoch": 3, nested: prefixed, "optimizer": {"lr": 0.1}} if nested else prefixed, file)
    return tensors


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_wrapper_puts_before_all_names_is_left_out(tmp_path: Path, prefix: str, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    tensors = write_under(prefix, file)
    weights = read_weights("resnet18", str(file))
    assert weights.keys() == tensors.keys()
    assert fingerprint(weights) == fingerprint(tensors)
    assert torch.equal(build_network("resnet18", 5, weights, 32, 0, 0).module.fc.weight, tensors["fc.weight"])


def test_a_head_beside_the_wrapped_network_is_its_head() -> None:
    tensors = tensors_of_resnet18()
    names = {
        ("module.fc." if key.startswith("fc.") else "module.backbone.") + key.removeprefix("fc."): key
        for key in tensors
    }
    assert without_prefix(names) == names


def test_prefixes_that_cannot_be_left_out_are_named(tmp_path: Path) -> None:
    tensors = tensors_of_resnet18()
    two = {f"{prefix}.{key}": tensor.clone() for prefix in ("student", "teacher") for key, tensor in tensors.items()}
    save_file(two, tmp_path / "two.safetensors")
    other = {f"encoder.{key}": tensor for key, tensor in tensors.items() if not key.startswith("layer1.")}
    save_file(other, tmp_path / "other.safetensors")
    beside = {f"net.{key}": tensor for key, tensor in tensors.items()} | {"criterion.weight": torch.zeros(1)}
    save_file(beside, tmp_path / "beside.safetensors")
    for name, words in {
        "two": "their names begin with 'student.' and 'teacher.'",
        "other": "their names begin with 'encoder.'",
        "beside": "criterion.weight is unknown",
    }.items():
        weights = read_weights("resnet18", str(tmp_path / f"{name}.safetensors"))
        with pytest.raises(WeightsError, match=words):
            build_network("resnet18", 5, weights, 32, 0, 0)


@pytest.mark.parametrize("name", ["best.pth.tar", "last.ckpt", "pytorch_model.bin", "w.pt", "W.PTH"])
@pytest.mark.parametrize("nested", ["state_dict", "model_state_dict", "model", "net"])
def test_checkpoints_of_any_suffix_and_nesting(tmp_path: Path, name: str, nested: str) -> None:
    tensors = write_under("module.", tmp_path / name, nested)
    assert fingerprint(read_weights("resnet18", str(tmp_path / name))) == fingerprint(tensors)


PLACEHOLDERS = {
    b"version https://git-lfs.github.com/spec/v1\n": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    b"<!DOCTYPE html>\n<html>": "a web page or a server's message; download the file itself",
    b"\xef\xbb\xbf\n <?xml version='1.0'?><Error>": "a web page or a server's message",
    b'{"error": "Repository not found"}': "a web page or a server's message",
    b"": "an empty file; fetch it again",
    b"\x1f\x8b\x08\x00": r"a gzip file \(.tar.gz\?\); unpack it",
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("content", PLACEHOLDERS)
def test_what_stands_in_for_weights_is_called_by_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    kind = r"\.safetensors" if name.endswith("safetensors") else "PyTorch"
    with pytest.raises(WeightsError, match=f"is no {kind} file but {PLACEHOLDERS[content]}"):
        weights_file(str(tmp_path / name))


def test_weights_under_the_suffix_of_another_kind_are_said_to_be(tmp_path: Path) -> None:
    write_under("", tmp_path / "w.pth")
    (tmp_path / "w.pth").rename(tmp_path / "a.safetensors")
    write_under("", tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"no \.safetensors file but what torch\.save writes; name it \.pth"):
        read_weights("resnet18", str(tmp_path / "a.safetensors"))
    with pytest.raises(WeightsError, match=r"no PyTorch file but a \.safetensors file; name it so"):
        read_weights("resnet18", str(tmp_path / "b.pth"))


def test_what_training_scripts_keep_beside_weights_is_no_obstacle(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, out="a"),
        "best": np.float64(0.7),
        "steps": np.int64(5),
        "ok": np.bool_(1),
    }
    torch.save({"state_dict": network().module.state_dict(), **beside}, tmp_path / "theirs.pth")
    assert fingerprint(read_weights("resnet18", str(tmp_path / "theirs.pth"))) == fingerprint(
        network().module.state_dict()
    )


def test_weights_that_are_whole_numbers_are_refused() -> None:
    weights = {name: tensor.long() for name, tensor in network().module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"conv1\.weight holds whole numbers \(torch\.int64\)"):
        build_network("resnet18", 5, weights, 32, 0, seed=0)


def test_why_a_pth_file_cannot_be_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": Fraction(1, 2)}, tmp_path / "args.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save({"epoch": 3, "conv1.weight": torch.zeros(1)}, tmp_path / "epoch.pth")
    torch.save({"w": torch.zeros(1)}, tmp_path / "cut.pth", _use_new_zipfile_serialization=False)
    os.truncate(tmp_path / "cut.pth", 100)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    for name, words in {
        "args": r"holds more than tensors \(fractions\.Fraction\), which could run code",
        "module": r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)",
        "epoch": r"must hold tensors by name \(a state dict\), not epoch$",
        "cut": "cannot be read: it is cut short",
        "plain": "cannot be read: it is no state dict that torch.save wrote, or it is damaged",
    }.items():
        with pytest.raises(WeightsError, match=words):
            read_weights("resnet18", str(tmp_path / f"{name}.pth"))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_seed_alone_decides_random_weights(seed: int) -> None:
    torch.manual_seed(seed + 1)
    first = network(seed=seed)
    torch.manual_seed(seed + 2)
    assert fingerprint(network(seed=seed).module.state_dict()) == fingerprint(first.module.state_dict())


def test_weights_that_were_cut_short_or_hold_nan_are_refused(tmp_path: Path) -> None:
    network = build_network("resnet18", 5, {}, 32, 0, seed=1)
    whole = weights_as_bytes(network)
    file = tmp_path / "weights.safetensors"
    for length in (len(whole) // 2, len(whole) - 100, 100):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"weights.safetensors is cut short or damaged; fetch it again"):
            read_weights("resnet18", str(file))
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            network.module.conv1.weight[0, 0, 0, 0] = value
        file.write_bytes(weights_as_bytes(network))
        with pytest.raises(WeightsError, match=r"conv1\.weight holds NaN or infinity"):
            read_weights("resnet18", str(file))
