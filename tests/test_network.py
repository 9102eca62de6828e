"""The network: frozen parts that stay frozen, weights that fit or say why not."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hpo.errors import WeightsError
from hpo.parameters import FREEZABLE_LAYERS
from hpo.vision.checkpoints import weights_as_bytes
from hpo.vision.network import Classifier, build_network, fingerprint, read_weights, units


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
    before = [{k: t.clone() for k, t in unit.state_dict().items()} for unit in [*units(net.resnet), net.resnet.fc]]
    take_a_step(net)
    after = [unit.state_dict() for unit in [*units(net.resnet), net.resnet.fc]]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        moved = {key for key in old if not torch.equal(old[key], new[key])}
        expected = set() if number < frozen else set(old)
        assert moved == expected, f"unit {number}"


def test_a_frozen_network_predicts_as_the_same_network_unfrozen() -> None:
    pixels = torch.rand(3, 3, 32, 32)
    expected = network(0).eval()(pixels)
    for frozen in (1, 5, 9):
        assert torch.allclose(network(frozen).eval()(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", FREEZABLE_LAYERS)
def test_every_network_by_name_has_the_units_that_a_study_file_may_freeze(name: str) -> None:
    net = build_network(name, 7, {}, 32, FREEZABLE_LAYERS[name], 0)
    assert len(units(net.resnet)) == FREEZABLE_LAYERS[name]
    assert net(torch.rand(2, 3, 40, 40)).shape == (2, 7)
    assert [p.requires_grad for p in net.resnet.fc.parameters()] == [True, True]
    assert not any(p.requires_grad for p in net.resnet.layer4.parameters())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_from_a_file_but_for_the_head_of_another_task(tmp_path: Path, suffix: str) -> None:
    source, file = network(seed=1, classes=9), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.resnet.state_dict(), file)
    else:
        file.write_bytes(weights_as_bytes(source))
    weights = read_weights("resnet18", str(file))
    assert fingerprint(weights) == fingerprint(source.resnet.state_dict())
    other_task = build_network("resnet18", 5, weights, 32, 0, seed=2)
    assert torch.equal(other_task.resnet.conv1.weight, source.resnet.conv1.weight)
    assert torch.equal(other_task.resnet.layer4[1].bn2.running_var, source.resnet.layer4[1].bn2.running_var)
    assert other_task.resnet.fc.out_features == 5
    same_task = build_network("resnet18", 9, weights, 32, 0, seed=2)
    assert torch.equal(same_task.resnet.fc.weight, source.resnet.fc.weight)


def test_weights_that_do_not_fit_name_the_tensors(tmp_path: Path) -> None:
    weights = dict(network().resnet.state_dict())
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
        build_network("resnet50", 5, dict(network().resnet.state_dict()), 32, 0, 0)


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


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_seed_alone_decides_random_weights(seed: int) -> None:
    torch.manual_seed(seed + 1)
    first = network(seed=seed)
    torch.manual_seed(seed + 2)
    assert fingerprint(network(seed=seed).resnet.state_dict()) == fingerprint(first.resnet.state_dict())
