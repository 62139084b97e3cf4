"""Evaluation of the validation rows on the way, which moves nothing of the training."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.source import Source
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.towers.tasks.layout import task_names
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import DataSplit
from mail_torchrec.train.evaluation import evaluate
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.settings import TrainSettings
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span
from mail_torchrec.validation.interval import EvaluationInterval
from mail_torchrec.validation.messages import best_step_message, overfitting_warning
from mail_torchrec.validation.progress import ValidationProgress
from mail_torchrec.validation.settings import (
    METRICS_OF_NUMBERS,
    METRICS_OF_PROBABILITIES,
    EarlyStoppingSettings,
)

logger = get_logger(__name__)

_MIN_SAMPLED_GROUPS = 64
_MAX_KEPT_ROWS = 2**18
"""Rows of a rank whose batches stay in memory between two evaluations."""


def check_validation_settings(config: Config) -> None:
    """Checks that what chooses the best checkpoint can be computed.

    Raises:
        ValueError: there are no validation rows to stop early by, or no such metric.
    """
    settings = config.train.early_stopping
    if config.data.validation is None:
        if settings != EarlyStoppingSettings():
            raise ValueError(
                "train.early_stopping is about validation rows, and there are none; set "
                "data.validation.share=0.05, or .last_days or .path"
            )
    elif settings.metric.startswith(("cvr", "ctcvr")) and config.model.multi_task is None:
        raise ValueError(
            f"train.early_stopping.metric={settings.metric} is for models that predict "
            "conversions; set model.multi_task, or another metric"
        )
    elif "/" in settings.metric:
        task, known = settings.metric.partition("/")[0], task_names(config.model.tasks)
        if task not in known:
            raise ValueError(
                f"train.early_stopping.metric={settings.metric} names the task '{task}', and "
                f"model.tasks predicts {', '.join(known) or 'none'}; add it, or set another metric"
            )
        _check_metric_of_task(config, task)


def _check_metric_of_task(config: Config, task: str) -> None:
    """Checks that a task's metric is one of numbers, or of probabilities, as the task is."""
    settings = config.model.tasks.get(task)  # none of a probability given another task
    is_number = settings is not None and settings.type != "binary"
    known = METRICS_OF_NUMBERS if is_number else METRICS_OF_PROBABILITIES
    if (metric := config.train.early_stopping.metric).partition("/")[2] not in known:
        raise ValueError(
            f"train.early_stopping.metric={metric}: '{task}' is "
            f"{'a number' if is_number else 'a probability'}; set one of its metrics, "
            f"{', '.join(known)}"
        )


def sample_rows(source: Source, num_rows: int | None) -> Source:
    """Samples about so many rows: the first ones of evenly spaced row groups.

    Args:
        source: of all rows.
        num_rows: to sample; None for all.
    """
    groups, total = source.row_groups, source.num_rows
    if num_rows is None or num_rows >= total:
        return source
    num_groups = min(max(-(-num_rows * len(groups) // total), _MIN_SAMPLED_GROUPS), len(groups))
    chosen = [groups[i * len(groups) // num_groups] for i in range(num_groups)]
    share = min(num_rows / sum(group.num_rows for group in chosen), 1.0)
    sample = source.select(
        [replace(group, num_rows=math.ceil(group.num_rows * share)) for group in chosen]
    )
    logger.info(
        "evaluating %s of %s validation rows on the way (train.evaluate_rows; all: each of them)",
        f"{sample.num_rows:,}",
        f"{total:,}",
    )
    return sample


class EvaluationInterruptedError(Exception):
    """The run was told to stop during an evaluation; it is done anew when the run is resumed."""


@dataclass
class Validator:
    """Evaluates a model on its validation rows while it trains, and keeps track of the best step.

    The model's weights, statistics and random generators are the same before and after.
    """

    assembled: AssembledModel
    data: DataSplit
    """Validation rows."""
    train_settings: TrainSettings
    writer: MetricsWriter
    progress: ValidationProgress
    """Of the run so far; it says that a step is the best one before its checkpoint is written."""
    should_interrupt: Callable[[], bool]
    """Says after each batch whether the run must stop; the same on every rank."""

    def __post_init__(self) -> None:
        self.settings = self.train_settings.early_stopping
        self.interval = EvaluationInterval.parse(self.train_settings.evaluate_every)
        self._batches = _KeptBatches(self.data, self.should_interrupt)
        self._before = self.progress

    def evaluate(self) -> bool:
        """Evaluates the model after the step that was trained last; every rank calls it.

        Returns:
            Whether it is the best so far, and its checkpoint is to be saved.

        Raises:
            EvaluationInterruptedError: on every rank; nothing is recorded.
            ValueError: there is no such metric or cohort.
        """
        start, step = time.perf_counter(), self.writer.num_done
        devices = [self.assembled.device] if self.assembled.device.type == "cuda" else []
        with span("evaluation on the way"), torch.random.fork_rng(devices):
            found = evaluate(self.assembled, self.data.reader, self._batches)
        self.writer.record_validation(found.metrics, time.perf_counter() - start)
        self._before = self.progress
        value = self._value(found.metrics)
        self.progress = self.progress.after(self.settings, step, value)
        return self.progress.best_step == step

    def confirm_best(self, published_step: int | None) -> None:
        """Goes back to the best step before where the checkpoint of the newest one failed.

        Args:
            published_step: step of the newest checkpoint, all writes done.
        """
        best_step, before = self.progress.best_step, self._before
        if best_step != before.best_step and (published_step or 0) < (best_step or 0):
            logger.warning(
                "the checkpoint of step %s, the best so far, could not be written; the best one "
                "that is saved is that of step %s",
                best_step,
                before.best_step,
            )
            self.progress = self.progress.with_best_of(before)
        self._before = self.progress

    def log_outcome(self, steps_per_epoch: int) -> None:
        """Says which step was the best, and warns where more steps made it worse."""
        settings, progress = self.settings, self.progress
        message = best_step_message(settings, progress)
        warning = overfitting_warning(settings, progress, steps_per_epoch)
        if message is None:
            logger.warning("no validation had a value: the last checkpoint is the model")
        else:
            logger.info("%s", message)
        if warning is not None:
            logger.warning("%s", warning)
        self.writer.write_event({"best": progress.model_dump(include={"best_step", "best"})})

    @property
    def should_stop(self) -> bool:
        """Returns whether the patience is used up."""
        return self.progress.should_stop(self.settings)

    def _value(self, metrics: dict[str, CohortMetrics]) -> float | None:
        metric, cohort = self.settings.metric, self.settings.cohort
        if cohort not in metrics:
            raise ValueError(
                f"train.early_stopping.cohort should be one of {', '.join(metrics)}, received "
                f"'{cohort}'"
            )
        values: dict[str, Any] = {**metrics[cohort], **metrics[cohort].get("weighted", {})}
        values.pop("weighted", None)
        if metric not in values:
            raise ValueError(
                f"train.early_stopping.metric should be a metric of this model "
                f"({', '.join(values)}), received '{metric}'"
            )
        value = values[metric]
        if value is None:
            logger.warning(
                "validation: %s of the %s %s rows is undefined (users or rows of one label alone), "
                "so this evaluation chooses nothing; set train.early_stopping.cohort or metric, or "
                "give more validation rows",
                metric,
                values["rows"],
                cohort,
            )
            return None
        assert isinstance(value, int | float)
        return float(value)


class _KeptBatches:
    """Batches of a split, read once and kept in memory where they are few.

    Args:
        data: the split.
        should_interrupt: asked before each batch.
    """

    def __init__(self, data: DataSplit, should_interrupt: Callable[[], bool]) -> None:
        self._data, self._should_interrupt = data, should_interrupt
        self._kept: list[Batch] | None = None
        reader = data.reader
        self._keeps = len(reader) * reader.layout.batch_size <= _MAX_KEPT_ROWS

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._read() if self._kept is None else iter(self._kept):
            if self._should_interrupt():
                raise EvaluationInterruptedError
            yield batch

    def _read(self) -> Iterator[Batch]:
        kept = []
        for batch in self._data.loader:
            if self._keeps:
                kept.append(batch)
            yield batch
        if self._keeps:
            self._kept = kept
