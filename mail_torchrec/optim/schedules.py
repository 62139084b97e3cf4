"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state."""

import math

from mail_torchrec.optim.settings import OptimizerSettings, ScheduleSettings
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


def learning_rate_factor(schedule: ScheduleSettings, step: int, num_steps: int | None) -> float:
    """Computes the factor of the learning rate in one step.

    Args:
        schedule: its settings.
        step: number of the step, from 0.
        num_steps: steps of the whole run; None where they are not known, which constant and step
            do not need.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    warmup = schedule.warmup_steps
    if num_steps is not None and warmup >= num_steps > 0:
        raise ValueError(
            f"warmup_steps of a schedule should be less than the steps of the run, {num_steps}, "
            f"received {warmup}; lower it, or train for more epochs"
        )
    if step < warmup:
        return (step + 1) / warmup
    done = step - warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        assert schedule.every is not None, "checked by the settings"
        return float(schedule.gamma ** (done // schedule.every))
    assert num_steps is not None, "the optimizer groups were not told the steps of the run"
    share = min(done / (num_steps - warmup), 1.0)
    if schedule.name == "cosine":
        left = (1 + math.cos(math.pi * share)) / 2
    else:
        left = (1 - share) ** schedule.power
    return float(schedule.end + (1 - schedule.end) * left)


def log_longer_schedules(
    settings: OptimizerSettings, step: int, num_steps: int, added_steps: int
) -> None:
    """Logs what more epochs do to the schedules of a resumed run that depend on its length.

    Args:
        settings: of the run.
        step: number of the step to come, from 0.
        num_steps: steps of the whole run now.
        added_steps: how many of them were not planned before.
    """
    if not added_steps:
        return
    schedules = {"train": settings.schedule, "train.tables": settings.tables.schedule}
    for section, schedule in schedules.items():
        if schedule.name not in ("cosine", "polynomial"):
            continue
        before, now = (
            learning_rate_factor(schedule, step, length)
            for length in (num_steps - added_steps, num_steps)
        )
        logger.warning(
            "%s.schedule: train.epochs has changed, and %s runs over %d steps now instead of %d; "
            "its factor of the learning rate in the step to come is %.3g now instead of %.3g",
            section,
            schedule.name,
            num_steps,
            num_steps - added_steps,
            now,
            before,
        )
