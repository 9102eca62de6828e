"""One training step, and the two ways to run it: called from Python, or replayed by a GPU.

A step of a small network is some seven hundred kernels, each of which takes Python longer to launch than the GPU to
run. Recorded once as a CUDA graph, the whole step is one launch. For that all that the step reads and changes must stay
where it is in memory, nothing in it may wait for the GPU, and no shape may depend on values.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.vision.device import Compute
from hpo.vision.memory import Portions, fitting, is_out_of_memory

WARM_UPS = 3
"""Steps before a recording, in which libraries set themselves up: PyTorch's own advice."""


class Step:
    """Forward, backward and update of one batch.

    rate: float32 (), the learning rate of the next run; loss_sum: float64 (), the losses of all images since it was
    last set to 0. Both lie on the device.
    """

    def __init__(
        self,
        part: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute: Compute,
        label_smoothing: float,
        portions: Portions,
    ) -> None:
        self.part = part
        self.optimizer = optimizer
        self.compute = compute
        self.label_smoothing = label_smoothing
        self.portions = portions
        self.rate = torch.zeros((), device=compute.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    def run(self, features: Tensor, labels: Tensor) -> None:
        """features: what the part takes, n images; labels: int64 (n,). In micro-batches if memory is short."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros_like(self.loss_sum)
        parts = math.ceil(len(labels) / self.portions.micro_batch)
        for some_features, some_labels in zip(features.tensor_split(parts), labels.tensor_split(parts), strict=True):
            with self.compute.autocast(cache_enabled=False):  # a recording must not keep casts from outside of it
                logits = self.part(some_features)
                loss = F.cross_entropy(logits, some_labels, label_smoothing=self.label_smoothing)
            (loss * (len(some_labels) / len(labels))).backward()
            loss_sum += loss.detach().double() * len(some_labels)
        self.optimizer.step()
        self.loss_sum += loss_sum

    def changes(self) -> list[Tensor]:
        """All that a run changes, in place."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        kept = [value for value in states if isinstance(value, Tensor)]
        return [*(p.data for p in self.part.parameters()), *self.part.buffers(), *kept, self.loss_sum]


class Recorder(Protocol):
    """A device that runs what it has recorded."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs it as the recording will."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What replays it, without having run it."""
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
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may write a checkpoint
            run()
        return graph.replay


class Runner:
    """Runs a step on batch after batch: replayed if they are whole and there is a recorder, else called.

    how: "replayed" as long as whole batches are, else "called", and why.
    """

    def __init__(self, step: Step, batch_size: int, recorder: Recorder | None) -> None:
        self.step = step
        self.batch_size = batch_size
        self.recorder = recorder
        self.how = "replayed" if recorder else "called"
        self._replay: Callable[[], None] | None = None

    def run(self, features: Tensor, labels: Tensor) -> None:
        """One step. If memory is short, in micro-batches from now on; MemoryError if not even those fit."""
        fitting(lambda: self._run(features, labels), self._split_batch)

    def forget(self) -> None:
        """Gives the recording's memory back."""
        self._replay = None

    def _run(self, features: Tensor, labels: Tensor) -> None:
        if self.recorder is not None and self._replay is None and len(labels) == self.batch_size:
            self._record(self.recorder, features, labels)
        if self._replay is None or len(labels) != self.batch_size:
            self.step.run(features, labels)
            return
        self._features.copy_(features)
        self._labels.copy_(labels)
        self._replay()

    def _record(self, recorder: Recorder, features: Tensor, labels: Tensor) -> None:
        """What the warm-up changed is undone, so that it does not matter when in a training it comes."""
        self._features, self._labels = features.clone(), labels.clone()
        before = [tensor.clone() for tensor in self.step.changes()]

        def run() -> None:
            self.step.run(self._features, self._labels)

        try:
            try:
                recorder.warm_up(run)
            finally:
                torch._foreach_copy_(self.step.changes(), before)
            self._replay = recorder.record(run)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.recorder = None
            self.how = f"called: {str(error).splitlines()[0]}"
            with suppress(RuntimeError):
                self.step.optimizer.zero_grad(set_to_none=True)

    def _split_batch(self) -> None:
        self.forget()
        self.step.portions.split_batch()
