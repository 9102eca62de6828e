"""An epoch's work on a GPU that is not there: with tensors that have a device and a shape but no values. All are on the
device where they must be, and whoever asks for a value fails. Only autograd's engine asks for a real device.

    python tests/epoch_without_values.py FROZEN_LAYERS
"""

import gc
import os
import sys
import warnings
from collections.abc import Callable

import torch
from test_step import BATCH, PERTURBATIONS, Called, an_epochs_work
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hpo.vision.classifier import build_network
from hpo.vision.device import Compute
from hpo.vision.training.augmentation import Augmentation
from hpo.vision.training.loop import Training
from hpo.vision.training.recipe import Recipe

GPU = torch.device("cuda")


def convert(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As `nn.Module._apply`, which cannot convert such tensors in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(change(parameter.data), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


def backward(loss: Tensor) -> None:
    assert loss.requires_grad
    for parameter in network.trainable_part.parameters():
        parameter.grad = torch.zeros_like(parameter)


def update(*lists: list[Tensor], lr: Tensor, **settings: object) -> None:
    """PyTorch's fused SGD, of which it knows no version without values."""
    assert {tensor.device.type for tensors in (*lists, [lr]) for tensor in tensors} == {"cuda"}


gc.disable()  # PyTorch may crash where it clears such tensors away: nothing is
warnings.simplefilter("ignore")
nn.Module._apply = convert  # type: ignore[method-assign, assignment]
Tensor.pin_memory = lambda tensor: tensor  # type: ignore[method-assign, assignment, misc]
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda including_emulation=True: True
values_are_unknown = FakeTensorMode(allow_non_fake_inputs=True)
with values_are_unknown:
    network = build_network("resnet18", 5, {}, 32, int(sys.argv[1]), seed=0)
    augmentation = Augmentation(1.0, PERTURBATIONS, horizontal_flip=True)
    training = Training(network, Recipe(1, BATCH, 0.05, 5e-4, 0.1, augmentation, seed=0), Compute(GPU, True), Called())
torch._fused_sgd_ = update
Tensor.backward = backward  # type: ignore[method-assign, assignment]
assert {tensor.device.type for tensor in training.tensors().values() if tensor.ndim} == {"cuda"}
made = an_epochs_work(training, GPU, lambda: values_are_unknown)
with values_are_unknown:
    try:
        float(training.runner.step.loss_sum)
    except DataDependentOutputException:
        sys.stdout.write("an epoch could run on a GPU\n")
        sys.stdout.flush()
os._exit(0)
