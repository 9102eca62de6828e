"""One training step, and the two ways to run it: called from Python, or replayed by a GPU.

A step of a small network is some seven hundred kernels, each of which takes Python longer to launch than the GPU to
run. Recorded once as a CUDA graph, the whole step is one launch. For that all that the step reads and changes must stay
where it is in memory, nothing in it may wait for the GPU, and no shape may depend on values.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo.vision.device import Compute
from hpo.vision.memory import Portions, fitting, is_out_of_memory
from hpo.vision.training.optimizers import Optimizer

WARM_UPS = 3
"""Steps before a recording, in which libraries set themselves up: PyTorch's own advice."""


class Step:
    """Forward, backward and update of one batch.

    compiled: what stands for the part where a whole batch is taken at once; rate: float32 (), the learning rate of the
    next run; loss_sum: float64 (), the losses of all images since it was last set to 0. These two lie on the device.
    """

    def __init__(
        self,
        part: nn.Module,
        optimizer: Optimizer,
        compute: Compute,
        batch_size: int,
        label_smoothing: float,
        portions: Portions,
        compiled: nn.Module | None = None,
    ) -> None:
        self.part = part
        self.compiled = compiled or part
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.compute = compute
        self.label_smoothing = label_smoothing
        self.portions = portions
        self.rate = optimizer.rate
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)

    def run(self, features: Tensor, labels: Tensor) -> None:
        """features: what the part takes, n images; labels: int64 (n,). In micro-batches if memory is short."""
        self.optimizer.forget_gradients()
        loss_sum = torch.zeros_like(self.loss_sum)
        parts = math.ceil(len(labels) / self.portions.micro_batch)
        part = self.compiled if len(labels) == self.batch_size and parts == 1 else self.part  # of one shape alone
        for some_features, some_labels in zip(features.tensor_split(parts), labels.tensor_split(parts), strict=True):
            with self.compute.autocast(cache_enabled=False):  # a recording must not keep casts from outside of it
                logits = part(some_features)
                loss = F.cross_entropy(logits, some_labels, label_smoothing=self.label_smoothing)
            (loss * (len(some_labels) / len(labels))).backward()
            loss_sum += loss.detach().double() * len(some_labels)
        self.optimizer.step()
        self.loss_sum += loss_sum

    def changes(self) -> list[Tensor]:
        """All that a run changes, in place."""
        state = [tensor for kept in self.optimizer.state.values() for tensor in kept.values()]
        return [*(p.data for p in self.part.parameters()), *self.part.buffers(), *state, self.loss_sum]


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
        here = torch.cuda.stream(torch.cuda.current_stream())  # a recording that fails would not return to it
        with here, torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may write a checkpoint
            run()
        return graph.replay


class Runner:
    """Runs a step on batch after batch: replayed if they are whole and there is a recorder, else called.

    how: "replayed" as long as whole batches are, else "called", and why.
    """

    def __init__(self, step: Step, recorder: Recorder | None) -> None:
        self.step = step
        self.recorder = recorder
        self.how = "replayed" if recorder else "called"
        self._replay: Callable[[Tensor, Tensor], None] | None = None

    def run(self, features: Tensor, labels: Tensor) -> None:
        """One step. If memory is short, in micro-batches from now on; MemoryError if not even those fit."""
        fitting(lambda: self._run(features, labels), self._split_batch)

    def forget(self) -> None:
        """Gives the recording's memory back."""
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
        """Or says why not."""
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
    """What replays the step on the features and labels that it is given. Those given here stay where they are.

    What the warm-up changed is undone, so that it does not matter when in a training it comes.
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
