"""The head that a training starts with, fitted to the features that the initial weights give the training images.

Fine-tuning with a random head distorts the features below it at first (Kumar et al., "Fine-tuning can distort
pretrained features and underperform out-of-distribution", ICLR 2022, arXiv:2202.10054). Linear probing beforehand
avoids this, and saves the epoch that would be spent on the head.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.vision.classifier import Classifier
from hpo.vision.data.images import Split
from hpo.vision.device import Compute, threads, upload
from hpo.vision.inference import Inference

MAX_ITERATIONS = 100
L2 = 3e-3
"""A third or three times this scores lower after the first epoch; a third also in the end (benchmarks/LOG.md)."""


def fitted_head(network: Classifier, train: Split, compute: Compute, label_smoothing: float) -> dict[str, Tensor]:
    """Weight and bias of multinomial logistic regression on the features of the clean training images, by L-BFGS.

    float32 on the CPU, by their names in the network. L-BFGS runs on the CPU, since it consists of thousands of
    operations too small for a GPU; next to a GPU in one thread, so that the last digits do not depend on how many
    threads a worker has.
    """
    body = Inference(nn.Sequential(network.frozen_part, *network.trainable_part[:-1], network.head.pool), compute)
    rows = torch.from_numpy(train.rows).split(compute.images_scored_at_once(network.normalise.size))
    images = (upload(torch.from_numpy(train.pixels[some.numpy()]), compute.device) for some in rows)
    features = torch.cat([body(batch.permute(0, 3, 1, 2)).float() for batch in images])
    labels = upload(torch.from_numpy(train.labels), compute.device)
    weight = torch.zeros_like(network.head.linear.weight, device="cpu").requires_grad_()
    bias = torch.zeros_like(network.head.linear.bias, device="cpu").requires_grad_()
    adding = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    vars(adding).setdefault("__dynamo_disable", adding)  # avoids importing the compiler, as in optimizers.py
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        weight.grad = bias.grad = None
        logits = F.linear(features, weight.to(compute.device), bias.to(compute.device))
        value = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        value = value.cpu() + L2 * weight.square().sum()
        value.backward()
        return value

    with threads(1) if compute.device.type == "cuda" else contextlib.nullcontext():
        optimizer.step(loss)
    return {f"{network.head_name}weight": weight.detach(), f"{network.head_name}bias": bias.detach()}
