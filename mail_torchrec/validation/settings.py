"""Settings of early stopping and of the best checkpoint."""

from pydantic import Field, field_validator

from mail_torchrec.settings import Settings

_TASKS = ("", "cvr_", "ctcvr_")
_KINDS = ("auc", "gauc", "log_loss", "normalised_entropy", "calibration")
METRICS = tuple(task + kind for task in _TASKS for kind in _KINDS)
METRICS_OF_NUMBERS = ("mae", "rmse", "gini", "calibration")
METRICS_OF_PROBABILITIES = _KINDS
_OF_TASKS = tuple(dict.fromkeys((*_KINDS, *METRICS_OF_NUMBERS)))


class EarlyStoppingSettings(Settings):
    """Metric that chooses the best checkpoint, and how long a run goes on without a better one."""

    metric: str = "auc"
    """Metric of the validation rows that chooses the best checkpoint: `auc`, `gauc`, `log_loss`,
    `normalised_entropy` or `calibration`, for conversions with `cvr_` or `ctcvr_` before it, for a
    task of `model.tasks` with its name, `buy/auc` or `watch/mae`. Of log loss, entropy and errors
    the lowest value is the best, of calibration the one nearest to 1, of the others the highest.
    Where the rows have weights it is the weighted metric."""
    cohort: str = "all"
    """Cohort of the metric: `new`, `old` or `all` rows, or another one of metrics.json."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row without an improvement after which the run stops; null: it never stops
    early, and the best checkpoint is chosen all the same."""
    min_delta: float = Field(default=0.0, ge=0)
    """Improvement that `patience` asks for: a better value by less than this counts as none. The
    best checkpoint is the one with the best value anyhow."""

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        task, slash, kind = metric.partition("/")
        if slash and task:
            if kind not in _OF_TASKS:
                raise ValueError(
                    f"metric of a task should be one of {', '.join(_OF_TASKS)}, received '{kind}'"
                )
        elif metric not in METRICS:
            raise ValueError(f"metric should be one of {', '.join(METRICS)}, received '{metric}'")
        return metric
