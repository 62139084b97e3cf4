"""The best step, the patience, and the warning at the end."""

import pytest

from mail_torchrec.validation.messages import best_step_message, overfitting_warning
from mail_torchrec.validation.progress import ValidationProgress
from mail_torchrec.validation.settings import EarlyStoppingSettings


def progress_of(settings: EarlyStoppingSettings, values: list[float | None]) -> ValidationProgress:
    progress = ValidationProgress()
    for step, value in enumerate(values, start=1):
        progress = progress.after(settings, step * 10, value)
    return progress


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("auc", [0.6, 0.7, 0.65, 0.7], (20, 0.7)),
        ("cvr_gauc", [0.6, 0.5], (10, 0.6)),
        ("log_loss", [0.6, 0.4, 0.5], (20, 0.4)),
        ("ctcvr_log_loss", [0.6, 0.4, 0.5], (20, 0.4)),
        ("normalised_entropy", [0.9, 0.95], (10, 0.9)),
        ("calibration", [0.5, 1.2, 0.9, 1.3], (30, 0.9)),
        ("auc", [None, 0.6, None], (20, 0.6)),
        ("auc", [None], (None, None)),
    ],
)
def test_the_best_step_is_the_first_with_the_best_value(
    metric: str, values: list[float | None], best: tuple[int | None, float | None]
) -> None:
    progress = progress_of(EarlyStoppingSettings(metric=metric), values)
    assert (progress.best_step, progress.best) == best


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([0.6, 0.5, 0.5], True),
        ([0.6, 0.5, 0.7], False),
        ([0.6, 0.605, 0.609], True),  # steps of less than min_delta
        ([0.6, 0.605, 0.62], False),
        ([0.6, None, 0.5], False),  # undefined values do not count
        ([0.6], False),
    ],
)
def test_a_run_stops_where_the_patience_is_used_up(values: list[float | None], stops: bool) -> None:
    settings = EarlyStoppingSettings(patience=2, min_delta=0.01)
    assert progress_of(settings, values).should_stop(settings) == stops
    assert not progress_of(EarlyStoppingSettings(), values).should_stop(EarlyStoppingSettings())


def test_min_delta_does_not_choose_the_best_step() -> None:
    settings = EarlyStoppingSettings(patience=5, min_delta=0.1)
    assert progress_of(settings, [0.6, 0.65, 0.64]).best_step == 20


def test_the_warning_says_what_to_set() -> None:
    settings = EarlyStoppingSettings(metric="log_loss", cohort="new")
    progress = progress_of(settings, [0.42, 0.41, 0.417])
    warning = overfitting_warning(settings, progress, steps_per_epoch=20)
    assert warning is not None
    assert "log_loss 0.41 of new rows after step 20, and 0.417 after step 30" in warning
    assert "set train.epochs=1 or stop in time with train.early_stopping.patience=3" in warning
    assert best_step_message(settings, progress) is not None
    for values in ([0.42, 0.41], [0.42, None], [None]):
        assert overfitting_warning(settings, progress_of(settings, values), 20) is None


def test_a_progress_survives_its_json() -> None:
    progress = progress_of(EarlyStoppingSettings(), [0.1 + 0.2, 0.2])
    assert ValidationProgress.model_validate_json(progress.model_dump_json()) == progress


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="metric should be one of auc, gauc, log_loss"):
        EarlyStoppingSettings(metric="f1")
