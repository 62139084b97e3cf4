"""A training step: its order, its spans, and one path for sharded and unsharded tables."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.train import steps
from mail_torchrec.train.steps import TimedBatches
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
