"""A training step: its order, its spans, and one path for sharded and unsharded tables."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mail_torchrec.embeddings.constraints import HAS_PREFETCH_STAGES
from mail_torchrec.train import steps
from mail_torchrec.train.steps import PrefetchingPipeline, TimedBatches
from mail_torchrec.utils.spans import STEP_SPANS, collect_spans
from tests.model.test_wall import build

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("sharded", [True, False])
def test_the_collector_and_the_profiler_see_every_part_of_a_step(
    small_root: Path, sharded: bool
) -> None:
    assembled, batches = build(small_root, sharding={"enabled": sharded})
    timed = TimedBatches(batches)
    assembled.pipeline.progress(timed)
    with collect_spans(assembled.device) as seconds:
        assembled.pipeline.progress(timed)
    with torch.profiler.profile() as profile:
        assembled.pipeline.progress(timed)
    expected = set(STEP_SPANS) - (set() if sharded else {"communication"})
    assert expected <= seconds.keys()
    assert expected <= {event.key for event in profile.key_averages()}
    assert all(seconds[name] > 0 for name in expected)


@pytest.mark.parametrize("sharded", [True, False])
def test_both_pipelines_run_the_one_training_step(
    small_root: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    original = steps.training_step

    def counted(model: torch.nn.Module, *arguments: Any) -> Any:
        calls.append(model.training)
        return original(model, *arguments)

    monkeypatch.setattr(steps, "training_step", counted)
    assembled, batches = build(small_root, sharding={"enabled": sharded})
    for _ in range(3):
        assembled.pipeline.progress(batches)
    assert calls == [True] * 3 and assembled.pipeline.is_prefetching()
    assembled.model.eval()
    with torch.no_grad():
        assert assembled.pipeline.progress(batches).losses == {}
    assert len(calls) == 3


@pytest.mark.parametrize("sharded", [True, False])
def test_steps_end_with_the_batches(small_root: Path, sharded: bool) -> None:
    assembled, batches = build(small_root, sharding={"enabled": sharded})
    three = iter([next(batches) for _ in range(3)])
    assert len(list(steps.run_steps(assembled.pipeline, three))) == 3


class _RecordedStages(PrefetchingPipeline):
    """The pipeline with a cache to fill, whose stages are only written down: it needs CUDA."""

    def __init__(self, calls: list[tuple[str, int]]) -> None:
        self.batches, self.contexts, self.calls = deque(), deque(), calls
        self._execute_all_batches = True
        self._step_model = self._step_optimizer = None  # type: ignore[assignment]

    def enqueue_batch(self, batches: Iterator[Any]) -> bool:
        for batch in batches:
            self.batches.append(batch)
            used = {"module_input_post_prefetch": {}, "module_contexts_post_prefetch": {}}
            self.contexts.append(SimpleNamespace(index=batch, **used))  # type: ignore[arg-type]
            return True
        return False

    def dequeue_batch(self) -> None:
        self.batches.popleft()
        self.contexts.popleft()

    def _init_pipelined_modules(self, batch: Any, *_: Any) -> None:
        self.calls.append(("sent", batch))

    def start_sparse_data_dist(self, batch: Any, context: Any) -> None:
        assert context.index == batch
        self.calls.append(("sent", batch))

    def wait_sparse_data_dist(self, context: Any) -> None:
        self.calls.append(("received", context.index))

    def _prefetch(self, context: Any) -> None:
        self.calls.append(("cached", context.index))

    def _set_module_context(self, context: Any) -> None: ...

    def _wait_for_batch(self) -> None: ...


@pytest.mark.skipif(not HAS_PREFETCH_STAGES, reason="TorchRec 1.6: sharding.prefetch is refused")
def test_caches_are_filled_for_the_next_batch_between_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, int]] = []

    def run_step(model: Any, optimizer: Any, batch: int, after_forward: Callable[[], None]) -> int:
        calls.append(("forward", batch))
        after_forward()
        calls.append(("backward", batch))
        return batch

    monkeypatch.setattr(steps, "run_step", run_step)
    pipeline, batches = _RecordedStages(calls), iter(range(4))
    assert [pipeline.progress(batches) for _ in range(4)] == [0, 1, 2, 3]  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        pipeline.progress(batches)  # type: ignore[arg-type]
    assert len(calls) == len(set(calls)) == 4 * 5
    place = {call: number for number, call in enumerate(calls)}
    for batch in range(4):
        stages = [place[stage, batch] for stage in ("sent", "received", "cached", "forward")]
        assert stages == sorted(stages)
    for batch in range(3):
        cached = place["cached", batch + 1]
        assert place["forward", batch] < cached < place["backward", batch]
