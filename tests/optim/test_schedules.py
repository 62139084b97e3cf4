"""Schedules: each against torch's own scheduler, or a closed form, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from mail_torchrec.optim.schedules import learning_rate_factor, log_longer_schedules
from mail_torchrec.optim.settings import OptimizerSettings, ScheduleSettings

Reference = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
STEPS, WARMUP = 40, 8
LEFT = STEPS - WARMUP


def rates(reference: Reference, num_steps: int) -> list[float]:
    """Learning rates of torch, whose optimizer has the rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"name": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, LEFT)),
        (
            {"name": "cosine", "end": 0.2},
            lambda o: lr_scheduler.CosineAnnealingLR(o, LEFT, eta_min=0.2),
        ),
        ({"name": "polynomial"}, lambda o: lr_scheduler.PolynomialLR(o, LEFT)),
        (
            {"name": "polynomial", "power": 2.5},
            lambda o: lr_scheduler.PolynomialLR(o, LEFT, power=2.5),
        ),
        (
            {"name": "step", "every": 5, "gamma": 0.3},
            lambda o: lr_scheduler.StepLR(o, 5, gamma=0.3),
        ),
        ({}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_a_schedule_is_torchs_own_behind_a_linear_warm_up(
    settings: dict[str, Any], reference: Reference
) -> None:
    schedule = ScheduleSettings.model_validate(settings | {"warmup_steps": WARMUP})
    found = [learning_rate_factor(schedule, step, STEPS) for step in range(STEPS)]
    warm_up = rates(lambda o: lr_scheduler.LinearLR(o, 1 / WARMUP, 1.0, WARMUP - 1), WARMUP)
    assert found == pytest.approx(warm_up + rates(reference, LEFT), rel=1e-12)


def test_the_end_is_reached_with_the_last_step_and_kept() -> None:
    for name in ("cosine", "polynomial"):
        schedule = ScheduleSettings.model_validate({"name": name, "end": 0.25})
        assert learning_rate_factor(schedule, 100, 100) == learning_rate_factor(schedule, 200, 100)
        assert learning_rate_factor(schedule, 100, 100) == 0.25
        last = learning_rate_factor(schedule, 99, 100)
        assert 0.25 < last < 0.26
    middle = learning_rate_factor(ScheduleSettings(name="cosine"), 25, 100)
    assert middle == pytest.approx(0.5 + 0.5 * math.sqrt(0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "step"}, "name=step needs 'every'"),
        ({"gamma": 0.5}, "'gamma' is for name=step, and name=constant does not read it"),
        ({"end": 0.5}, "'end' is for name=cosine and polynomial, and name=constant"),
        ({"name": "cosine", "power": 2}, "'power' is for name=polynomial"),
        ({"name": "cosine", "every": 5}, "'every' is for name=step"),
    ],
)
def test_a_setting_that_the_schedule_would_not_read_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSettings.model_validate(settings)


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"less than the steps of the run, 40, received 40"):
        learning_rate_factor(ScheduleSettings(warmup_steps=40), 0, 40)


def test_more_epochs_say_what_they_do_to_a_schedule(caplog: pytest.LogCaptureFixture) -> None:
    settings = OptimizerSettings(schedule=ScheduleSettings(name="cosine"))
    log_longer_schedules(settings, step=10, num_steps=20, added_steps=0)
    assert not caplog.records
    log_longer_schedules(settings, step=10, num_steps=20, added_steps=10)
    [record] = caplog.records
    assert (
        "train.schedule: train.epochs has changed, and cosine runs over 20 steps" in record.message
    )
    assert "in the step to come is 0.5 now instead of 0" in record.message
