"""Winograd's convolutions, against PyTorch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import start
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.vision import winograd
from hpo.vision.classifier import build_network
from hpo.vision.device import Compute
from hpo.vision.inference import Inference
from hpo.vision.winograd import WinogradConv2d, replace_convolutions


def learned(convolution: nn.Module, maps: Tensor) -> list[Tensor]:
    """The output, and the gradients of a loss that weighs each value of it otherwise."""
    maps = maps.clone().requires_grad_()
    output = convolution(maps)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = [maps.grad, *(parameter.grad for parameter in convolution.parameters())]
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None)]


@given(
    images=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.sampled_from([1, 2, 3, 4, 8, 16, 20]),
    bias=st.booleans(),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_it_computes_and_learns_what_a_convolution_does(
    images: int, channels: tuple[int, int], size: int, bias: bool, layout: torch.memory_format, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Conv2d(*channels, 3, padding=1, bias=bias)).to(memory_format=layout)
    replaced = copy.deepcopy(plain)
    replace_convolutions(replaced)
    assert type(replaced[0]) is WinogradConv2d
    maps = torch.rand(images, channels[0], size, size)
    expected = learned(plain, maps)
    found = learned(replaced, maps)
    assert len(found) == len(expected) == 3 + bias
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm() + 5e-5  # a bias's gradient is a sum that cancels out


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["stride", "no padding", "1x1", "groups", "dilation", "reflected"],
)
def test_other_convolutions_stay(convolution: nn.Conv2d) -> None:
    network = nn.Sequential(convolution)
    replace_convolutions(network)
    assert network[0] is convolution


def test_a_frozen_kernel_passes_gradients_on_and_gets_none() -> None:
    maps = torch.rand(2, 3, 8, 8, requires_grad=True)
    gradients = []
    for trained in (True, False):
        torch.manual_seed(0)
        convolution = WinogradConv2d(3, 4, 3, padding=1).requires_grad_(trained)
        maps.grad = None
        convolution(maps).square().sum().backward()
        gradients.append(maps.grad)
        assert (convolution.weight.grad is not None) == trained
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def has_winograd(network: nn.Module) -> bool:
    return any(isinstance(module, WinogradConv2d) for module in network.modules())


@pytest.mark.parametrize(("bf16", "frozen"), [(False, 0), (False, 3), (True, 0)])
def test_only_a_training_in_fp32_on_a_cpu_has_them(bf16: bool, frozen: int) -> None:
    compute = Compute(torch.device("cpu"), bf16)
    assert not has_winograd(build_network("resnet18", 10, {}, 32, frozen, seed=0))
    training = start(compute, frozen=frozen)
    assert has_winograd(training.network) == has_winograd(training.averaged) == (not bf16)
    whole = Inference(build_network("resnet18", 10, {}, 32, 0, seed=0), compute)
    assert has_winograd(whole.part) == (not bf16)
    assert not Compute(torch.device("cuda"), bf16).gains_from_winograd


def test_a_network_in_training_agrees_with_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients less closely than logits: a value near 0 may be to one side of a ReLU here and to the other there."""
    images, labels = torch.rand(8, 3, 64, 64), torch.arange(8) % 5
    logits, gradients = [], []
    for size in (winograd.LARGEST_SIZE, 0):
        monkeypatch.setattr(winograd, "LARGEST_SIZE", size)
        network = build_network("resnet18", 5, {}, 64, 0, seed=0)
        replace_convolutions(network)
        logits.append(network(images))
        F.cross_entropy(logits[-1], labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert 0 < (logits[0] - logits[1]).norm() < 1e-4 * logits[1].norm()
    assert (gradients[0] - gradients[1]).norm() < 3e-2 * gradients[1].norm()
