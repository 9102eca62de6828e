"""One training step, and two ways to run it: called from Python, or replayed by a GPU.

A step of a small network consists of about seven hundred kernels, each of which takes longer to launch from Python than
to run on the GPU. Recorded once as a CUDA graph, the whole step is a single launch. This requires that everything the
step reads or changes stays at its address, that nothing waits for the GPU, and that no shape depends on values.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.vision.device import Compute
from hpo.vision.memory import Portions, fitting, is_out_of_memory
from hpo.vision.training.batches import joined
from hpo.vision.training.optimizers import Optimizer

WARM_UPS = 3
"""Steps before a recording, in which libraries initialise themselves, as PyTorch's documentation recommends."""


class Step:
    """Forward, backward and update of one batch.

    consistency: weight of the Jensen-Shannon divergence between what the part says of an image and of its unperturbed
    twin (Hendrycks et al., "AugMix", ICLR 2020, arXiv:1912.02781), if batches have twins; splits_statistics: whether
    twins have BatchNorm statistics of their own, which are those that are kept, and count as training images (Xie et
    al., "Adversarial Examples Improve Image Recognition", CVPR 2020, arXiv:1911.09665); compiled: used instead of
    `part` for full batches that are not split; rate: float32 (), the learning rate of the next run; loss_sum: float64
    (), sum of the images' losses since it was last set to 0. Both are on the device.
    """

    def __init__(
        self,
        part: nn.Module,
        optimizer: Optimizer,
        compute: Compute,
        batch_size: int,
        label_smoothing: float,
        portions: Portions,
        consistency: float = 0.0,
        splits_statistics: bool = False,
        compiled: nn.Module | None = None,
    ) -> None:
        self.part = part
        self.compiled = compiled or part
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.compute = compute
        self.label_smoothing = label_smoothing
        self.portions = portions
        self.consistency = consistency
        self.splits_statistics = splits_statistics
        self.rate = optimizer.rate
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)

    def run(self, features: Tensor, labels: Tensor) -> None:
        """features: the part's input for n images, or for these and then their n twins; labels: int64 (n,). Split into
        micro-batches if memory is short.
        """
        self.optimizer.forget_gradients()
        loss_sum = torch.zeros_like(self.loss_sum)
        parts = math.ceil(len(labels) / self.portions.micro_batch)
        part = self.compiled if len(labels) == self.batch_size and parts == 1 else self.part  # compiled for one shape
        versions = features.chunk(len(features) // len(labels))
        micro_batches = zip(*(version.tensor_split(parts) for version in versions), strict=True)
        for some_features, some_labels in zip(micro_batches, labels.tensor_split(parts), strict=True):
            with self.compute.autocast(cache_enabled=False):  # a recording must not use casts cached outside of it
                loss = self._loss(part, some_features, some_labels)
            (loss * (len(some_labels) / len(labels))).backward()
            loss_sum += loss.detach().double() * len(some_labels)
        self.optimizer.step()
        self.loss_sum += loss_sum

    def _loss(self, part: nn.Module, versions: Sequence[Tensor], labels: Tensor) -> Tensor:
        """versions: features of the images, and of their twins if there are any."""
        cross_entropy = partial(F.cross_entropy, target=labels, label_smoothing=self.label_smoothing)
        if self.splits_statistics:
            images, twins = versions
            with statistics_kept(part):
                logits = part(images)
            of_twins = part(twins)
            loss = (cross_entropy(logits) + cross_entropy(of_twins)) / 2
        else:
            logits, *others = part(joined(versions)).chunk(len(versions))
            loss = cross_entropy(logits)
            of_twins = others[0] if others else logits
        if self.consistency:
            loss = loss + self.consistency * jensen_shannon(logits, of_twins)
        return loss

    def changes(self) -> list[Tensor]:
        """All tensors that a run changes, in place."""
        state = [tensor for kept in self.optimizer.state.values() for tensor in kept.values()]
        return [*(p.data for p in self.part.parameters()), *self.part.buffers(), *state, self.loss_sum]


@contextlib.contextmanager
def statistics_kept(part: nn.Module) -> Iterator[None]:
    """BatchNorms go on to use the statistics of their input, and forget them."""
    norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:  # memory may run out, and the batch be tried again in parts
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """The divergence of the classes' probabilities, from logits, float32 (n, classes): the mean of n, 0 to ln 2."""
    both = torch.stack([first, second]).log_softmax(2)
    middle = torch.logaddexp(*both) - math.log(2)
    return (both.exp() * (both - middle)).sum(2).mean()


class Recorder(Protocol):
    """A device that can record work and replay it."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs it under the conditions of a recording."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Records without running; the returned function replays."""
        ...


class CudaRecorder:
    """CUDA graphs."""

    def warm_up(self, run: Callable[[], None]) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.stream(torch.cuda.current_stream())  # a failed recording would not restore it
        with here, torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may write a checkpoint
            run()
        return graph.replay


class Runner:
    """Runs a step on successive batches: full ones are replayed if there is a recorder, others are called.

    how: "replayed", or "called" with the reason if recording failed.
    """

    def __init__(self, step: Step, recorder: Recorder | None) -> None:
        self.step = step
        self.recorder = recorder
        self.how = "replayed" if recorder else "called"
        self._replay: Callable[[Tensor, Tensor], None] | None = None

    def run(self, features: Tensor, labels: Tensor) -> None:
        """One step; with smaller micro-batches once memory runs out. Raises MemoryError if they cannot be smaller."""
        fitting(lambda: self._run(features, labels), self._split_batch)

    def forget(self) -> None:
        """Drops the recording, which frees its memory."""
        self._replay = None

    def _run(self, features: Tensor, labels: Tensor) -> None:
        whole = len(labels) == self.step.batch_size
        if whole and self._replay is None and self.recorder is not None:
            self._record(self.recorder, features, labels)
        if whole and self._replay is not None:
            self._replay(features, labels)
        else:
            self.step.run(features, labels)

    def _record(self, recorder: Recorder, features: Tensor, labels: Tensor) -> None:
        """Records the step; on failure sets `how` to the reason."""
        try:
            self._replay = _recorded(self.step, recorder, features.clone(), labels.clone())
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.recorder = None
            reason, _, _ = str(error).partition("\n")
            self.how = f"called: {reason}"

    def _split_batch(self) -> None:
        self.forget()
        self.step.portions.split_batch()


def _recorded(step: Step, recorder: Recorder, features: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], None]:
    """A function that replays the step on the features and labels it is called with.

    The tensors passed here become the recording's input buffers. Changes made by the warm-up are undone, so that the
    time of a recording does not affect the results.
    """
    before = [tensor.clone() for tensor in step.changes()]
    try:
        recorder.warm_up(lambda: step.run(features, labels))
    finally:
        torch._foreach_copy_(step.changes(), before)
    replay = recorder.record(lambda: step.run(features, labels))

    def run(some_features: Tensor, some_labels: Tensor) -> None:
        features.copy_(some_features)
        labels.copy_(some_labels)
        replay()

    return run
