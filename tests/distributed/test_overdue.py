"""On CUDA a watchdog ends waits for other ranks that last too long, and no honest work."""

import pytest
import torch.distributed as dist

from mail_torchrec.distributed.watchdog import Watchdog
from mail_torchrec.utils.spans import reset_spans, span


def is_overdue() -> bool:
    """Whether the open span is a fault by its length, where every moment is too long."""
    store = dist.HashStore()
    return Watchdog(store, 0, 2, 0.0, enforce_timeout=True)._is_overdue()


@pytest.mark.parametrize("outer", ["training, epoch 1", "evaluation", "importance"])
def test_collectives_and_steps_may_not_last(outer: str) -> None:
    reset_spans()
    with span(outer):
        with span("step", 3, collective=True), span("backward"):
            assert is_overdue()
        with span("communication"):
            assert is_overdue()


@pytest.mark.parametrize("name", ["evaluation", "loading the checkpoint", "training, epoch 1"])
def test_metrics_files_and_checkpoints_may_last(name: str) -> None:
    reset_spans()
    assert not is_overdue()  # between spans too
    with span(name):
        assert not is_overdue()
        with span("saving a checkpoint", patient=True), span("communication"):
            assert not is_overdue()


def test_slow_input_of_a_step_is_left_to_the_watchdog_over_reading() -> None:
    reset_spans()
    with span("step", 3, collective=True), span("input", reads=True):
        assert not is_overdue()
