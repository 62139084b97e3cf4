"""One training or evaluation step, and the pipelines that feed it with batches.

:func:`training_step` is the only place where a loss is differentiated and an optimizer is stepped.
Its spans (see ``utils/spans.py``) are ``lookup``, ``zero_shot`` and ``ranking`` within the model,
then ``backward`` and ``optimizer``; ``input`` and ``communication`` lie around them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Protocol

import torch
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import (
    PrefetchTrainPipelineSparseDist,
    TrainPipelineSparseDist,
)

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.embeddings.communication.replicas import average_replicas
from mail_torchrec.model.step import StepOutputs
from mail_torchrec.optim.groups import OptimizerGroups
from mail_torchrec.utils.spans import span

# The pooled and the unpooled collection of tables.
_NUM_COLLECTIONS = 2


class StepPipeline(Protocol):
    """Runs steps over an iterator of batches."""

    def progress(self, batches: Iterator[Batch]) -> StepOutputs:
        """Runs one step; raises StopIteration when there is no batch left."""

    def is_prefetching(self) -> bool:
        """Returns whether every collection of sharded tables is prefetched for."""

    def settle(self) -> None:
        """Waits until no exchange of a next batch is under way."""


class UnshardedPipeline:
    """Runs one step after another: unsharded tables have no communication to hide.

    Args:
        model: returns the loss and the outputs of a batch.
        optimizer: of all parameters.
        device: of the model.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerGroups, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device

    def progress(self, batches: Iterator[Batch]) -> StepOutputs:
        """Runs one step; raises StopIteration when there is no batch left."""
        batch = next(batches).to(self._device, non_blocking=True)
        return run_step(self._model, self._optimizer, batch)

    def is_prefetching(self) -> bool:
        """Returns True: there is nothing to prefetch."""
        return True

    def settle(self) -> None:
        """Does nothing: steps exchange nothing ahead."""


class _ExchangingPipeline(TrainPipelineSparseDist[Batch, StepOutputs]):
    """Common part of the pipelines whose stages are TorchRec's."""

    def __init__(self, model: nn.Module, optimizer: OptimizerGroups, device: torch.device) -> None:
        super().__init__(model, optimizer, device)
        self._step_model, self._step_optimizer = model, optimizer

    def is_prefetching(self) -> bool:
        """Returns whether TorchRec prefetches for both collections of tables.

        It silently leaves out a collection whose input is changed before the call.
        """
        return len(self._pipelined_modules) == _NUM_COLLECTIONS

    def settle(self) -> None:
        """Waits until no exchange of a next batch is under way; a step waits once more for it."""
        for context in self.contexts:
            for request in context.input_dist_tensors_requests.values():
                for part in request.awaitables:
                    part.wait()


class ShardedPipeline(_ExchangingPipeline):
    """Runs steps of sharded tables, overlapped with the input exchange of the next batches.

    While batch ``i`` is trained on, the ids of batch ``i + 1`` travel to the ranks that hold their
    rows, and batch ``i + 2`` is copied to the device. The stages are TorchRec's; the step itself is
    :func:`run_step`.

    Args:
        model: a ``DistributedModelParallel``, which returns the loss and the outputs of a batch.
        optimizer: of all parameters.
        device: of this rank.
    """

    def progress(self, batches: Iterator[Batch]) -> StepOutputs:
        """Runs one step; raises StopIteration when there is no batch left."""
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        self._wait_for_batch()
        if len(self.batches) > 1:
            with span("communication"):
                self.start_sparse_data_dist(self.batches[1], self.contexts[1])
        self.enqueue_batch(batches)
        outputs = run_step(
            self._step_model, self._step_optimizer, self.batches[0], self._finish_input_exchange
        )
        self.dequeue_batch()
        return outputs

    def _finish_input_exchange(self) -> None:
        """Starts the exchange of the next batch's ids, whose lengths have arrived by now."""
        if len(self.batches) > 1:
            with span("communication"):
                self.wait_sparse_data_dist(self.contexts[1])


class PrefetchingPipeline(_ExchangingPipeline, PrefetchTrainPipelineSparseDist):
    """Runs steps as :class:`ShardedPipeline` does, and fills the tables' caches beside them.

    While batch ``i`` is trained on, the rows of batch ``i + 1`` are copied from host memory to the
    caches on the GPU, behind its forward pass, and batch ``i + 2`` is copied to the device.

    Args:
        model: a ``DistributedModelParallel``, which returns the loss and the outputs of a batch.
        optimizer: of all parameters.
        device: of this rank, CUDA.
    """

    def progress(self, batches: Iterator[Batch]) -> StepOutputs:
        """Runs one step; raises StopIteration when there is no batch left."""
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        self._wait_for_batch()
        self.enqueue_batch(batches)
        if len(self.batches) > 1:
            with span("communication"):
                self.wait_sparse_data_dist(self.contexts[1])
        outputs = run_step(
            self._step_model, self._step_optimizer, self.batches[0], self._prefetch_next
        )
        if len(self.batches) > 2:
            with span("communication"):
                self.start_sparse_data_dist(self.batches[2], self.contexts[2])
        self.dequeue_batch()
        return outputs

    def _wait_for_batch(self) -> None:
        """Lets the step wait for the caches, which wait for the batch."""
        torch.cuda.current_stream().wait_stream(self._prefetch_stream)
        super()._wait_for_batch()

    def _prefetch_next(self) -> None:
        """Fills the caches for the next batch; what the forward pass has used is freed."""
        self.contexts[0].module_input_post_prefetch.clear()
        self.contexts[0].module_contexts_post_prefetch.clear()
        if len(self.batches) > 1:
            self._prefetch(self.contexts[1])


def sharded_pipeline(
    model: nn.Module, optimizer: OptimizerGroups, device: torch.device, *, prefetches: bool
) -> StepPipeline:
    """Builds the pipeline of sharded tables, with or without the prefetch into their caches."""
    kind = PrefetchingPipeline if prefetches else ShardedPipeline
    return kind(model, optimizer, device)


def run_step(
    model: nn.Module,
    optimizer: OptimizerGroups,
    batch: Batch,
    after_forward: Callable[[], None] = lambda: None,
) -> StepOutputs:
    """Runs a training step, or an evaluation step where the model is in evaluation mode.

    Args:
        model: returns the loss and the outputs of a batch.
        optimizer: of all parameters.
        batch: on the model's device.
        after_forward: called behind the forward pass, for communication that the backward pass
            hides.
    """
    if model.training:
        return training_step(model, optimizer, batch, after_forward)
    outputs = evaluation_step(model, batch)
    after_forward()
    return outputs


def training_step(
    model: nn.Module,
    optimizer: OptimizerGroups,
    batch: Batch,
    after_forward: Callable[[], None] = lambda: None,
) -> StepOutputs:
    """Runs forward pass, backward pass and optimizers on one batch; arguments as for a step.

    Fused optimizers of sharded tables update them within the backward pass. The others may
    accumulate gradients over steps, and clip them. Replicas of the tables are averaged behind it.
    """
    optimizer.begin_step()
    with optimizer.gradient_exchange(model):
        loss, outputs = _forward(model, batch)
        after_forward()
        with span("backward"):
            loss.backward()
    with span("optimizer"):
        optimizer.finish_step()
    average_replicas(model)
    return outputs


def evaluation_step(model: nn.Module, batch: Batch) -> StepOutputs:
    """Scores one batch; the caller disables gradients."""
    return _forward(model, batch)[1]


def _forward(model: nn.Module, batch: Batch) -> tuple[Tensor, StepOutputs]:
    """Calls the model; modules are untyped."""
    loss_and_outputs: tuple[Tensor, StepOutputs] = model(batch)
    return loss_and_outputs


def run_steps(
    pipeline: StepPipeline, batches: Iterator[Batch], first: int = 1
) -> Iterator[StepOutputs]:
    """Runs the steps of all batches, each in a span ``step N``.

    Args:
        pipeline: of a model in training or evaluation mode.
        batches: of this rank.
        first: number of the first step.
    """
    for number in count(first):
        with span("step", number, collective=True):
            try:
                outputs = pipeline.progress(batches)
            except StopIteration:
                return
        assert pipeline.is_prefetching(), (
            "a table collection was not prefetched for: was its input changed before the call?"
        )
        yield outputs


class TimedBatches:
    """Iterates over the batches of a loader, and measures how long they were waited for.

    Args:
        loader: of one epoch.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader, self._batches, self._waited = loader, iter(()), 0.0
        self._has_begun = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            with span("input", reads=True):
                if not self._has_begun:
                    self._batches, self._has_begun = iter(self._loader), True
                return next(self._batches)
        finally:
            self._waited += time.perf_counter() - start

    def waited(self) -> float:
        """Returns the seconds of waiting since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited
