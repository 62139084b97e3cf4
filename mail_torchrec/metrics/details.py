"""Metrics that an evaluation reports beside its cohorts: by column, by tenth, and of constants."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.calibration.negatives import shifted_rate
from mail_torchrec.data.items.candidate_item import candidate_item
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.metrics.cohorts import CohortMetrics, EvaluatedRows, MetricsReport
from mail_torchrec.metrics.partitions import Partition, value_partition
from mail_torchrec.metrics.popularity import count_clicks, item_keys
from mail_torchrec.metrics.predicted import TenthOfRows
from mail_torchrec.metrics.row_columns import check_group_columns, read_texts
from mail_torchrec.metrics.settings import MetricsSettings
from mail_torchrec.reporting.calibration_plot import draw_calibration
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file

logger = get_logger(__name__)

DETAILS = ("metrics_details.json", "calibration.png")
"""Files that a run has of it."""


class ConstantMetrics(TypedDict):
    """Metrics of predictions that no model is needed for, on the same rows, by cohort."""

    training_ctr: float
    """Click rate of the training rows, in a sample as that of the evaluated rows."""
    constant: dict[str, CohortMetrics]
    """Of this click rate for every row."""
    item: str | None
    """Column of the item; None where the schema has none."""
    item_popularity: dict[str, CohortMetrics] | None
    """Of the smoothed click rate of the row's item in the training rows."""


class MetricsDetails(TypedDict):
    """Content of ``metrics_details.json``."""

    by: dict[str, dict[str, CohortMetrics]]
    """Column of ``metrics.by`` -> value -> metrics."""
    calibration: dict[str, dict[str, list[TenthOfRows]]]
    """Prediction (``pctr``, ...) -> cohort -> tenths of its rows, the lowest predictions first."""
    constants: ConstantMetrics | None
    """None where they were not asked for, or all training labels are equal."""


@dataclass(frozen=True)
class DetailedMetrics:
    """Computes the metrics of evaluated rows and their details.

    Args:
        source: of the evaluated rows.
        schema: of their columns.
        settings: what is reported.
        train: training rows, for the constants; None leaves these out.

    Raises:
        ValueError: the files have no column of ``metrics.by``, or one of several values a row.
    """

    source: Source
    schema: Schema
    settings: MetricsSettings
    train: Source | None = None

    def __post_init__(self) -> None:
        check_group_columns(self.source, self.schema, self.settings.by)

    def compute(
        self, rows: EvaluatedRows, numbers: Sequence[range]
    ) -> tuple[dict[str, CohortMetrics], MetricsDetails]:
        """Computes the metrics by cohort, and the details; every rank calls it with its own rows.

        Args:
            rows: evaluated rows.
            numbers: their numbers in the data.

        Raises:
            ValueError: as :meth:`MetricsReport.of`; or a file cannot be read any more.
        """
        report = MetricsReport.of(replace(rows, columns=self._columns(numbers)))
        constants = None
        if self.settings.constants and self.train is not None:
            constants = self._constants(self.train, rows, numbers)
            line, is_worse = constants_line(report.cohorts, constants)
            logger.log(logging.WARNING if is_worse else logging.INFO, "%s", line)
            if message := sampling_warning(report.cohorts, constants, rows.training_shift):
                logger.warning("%s", message)
        details = MetricsDetails(by=report.by, calibration=report.tenths, constants=constants)
        return report.cohorts, details

    def _columns(self, numbers: Sequence[range]) -> dict[str, Partition]:
        return {
            name: value_partition(
                read_texts(self.source, self.schema, name, numbers),
                self.settings.max_groups,
            )
            for name in self.settings.by
        }

    def _constants(
        self, train: Source, rows: EvaluatedRows, numbers: Sequence[range]
    ) -> ConstantMetrics | None:
        item = candidate_item(self.schema)
        counts = count_clicks(train, self.schema, item)
        if not 0 < counts.clicks < counts.rows:
            return None
        constant = _of_rates(rows, np.full(len(rows.scores_R), counts.rate))
        popularity = None
        if item is not None:
            keys = item_keys(self.source, self.schema, item, numbers)
            popularity = _of_rates(rows, counts.smoothed_rates(keys))
        return ConstantMetrics(
            training_ctr=shifted_rate(counts.rate, rows.training_shift),
            constant=constant,
            item=item,
            item_popularity=popularity,
        )


def write_details(details: MetricsDetails | None, folder: Path) -> None:
    """Writes ``metrics_details.json`` and ``calibration.png`` into a run directory.

    Args:
        details: of the run's evaluation; None writes nothing.
        folder: the run directory.
    """
    if details is None:
        return
    write_file(folder / DETAILS[0], json.dumps(details, indent=2) + "\n")
    try:
        draw_calibration(details["calibration"], folder / DETAILS[1])
    except (OSError, ValueError) as error:  # no reason to lose the metrics
        logger.warning("the calibration could not be drawn: %s", error)


def _of_rates(rows: EvaluatedRows, rates_R: NDArray[np.float64]) -> dict[str, CohortMetrics]:
    """Computes the metrics of click rates of training rows, strictly between 0 and 1."""
    logits_R = np.log(rates_R) - np.log1p(-rates_R) + rows.training_shift
    return MetricsReport.of(replace(rows, scores_R=logits_R, conversions=None, tasks=())).cohorts


def sampling_warning(
    metrics: dict[str, CohortMetrics], constants: ConstantMetrics | None, training_shift: float
) -> str | None:
    """Words the warning that the evaluated rows look sampled as the training rows are.

    Args:
        metrics: of the evaluated rows, by cohort.
        constants: of the same rows.
        training_shift: of the rows, see :class:`EvaluatedRows`.
    """
    ctr = metrics["all"]["ctr"]
    if constants is None or not ctr or ctr == 1 or not training_shift:
        return None
    wanted = constants["training_ctr"]
    sampled = shifted_rate(wanted, -training_shift)
    logits = [math.log(rate / (1 - rate)) for rate in (ctr, sampled, wanted)]
    if abs(logits[0] - logits[1]) >= abs(logits[0] - logits[2]):
        return None
    return (
        f"the test rows have a CTR of {ctr:.3g}, which is rather that of the training rows as they "
        f"are sampled ({sampled:.3g}) than that of all rows ({wanted:.3g}); if their negatives "
        "were downsampled too, set data.test_negatives_kept"
    )


def constants_line(
    metrics: dict[str, CohortMetrics], constants: ConstantMetrics | None
) -> tuple[str, bool]:
    """Compares the metrics of all rows with those of the constants, in one line.

    They are the weighted ones where the rows have weights.

    Returns:
        The line, and whether a constant has the lower log loss.
    """
    if constants is None:
        return "all training labels are equal: there is no constant to compare with", False
    own, constant = _weighted(metrics["all"]), _weighted(constants["constant"]["all"])
    parts = [
        f"the training CTR {constants['training_ctr']:.4g} for every row {_log_loss(constant)}"
    ]
    others = [constant]
    if constants["item_popularity"] is not None:
        popularity = _weighted(constants["item_popularity"]["all"])
        parts.append(
            f"item popularity ({constants['item']}) {_log_loss(popularity)}{_auc(popularity)}"
        )
        others.append(popularity)
    else:
        parts.append("item popularity left out: the schema has no item column of one id a row")
    losses = [loss for each in others if (loss := each["log_loss"]) is not None]
    own_loss = own["log_loss"]
    is_worse = own_loss is not None and any(loss < own_loss for loss in losses)
    name = "weighted log loss" if "weighted" in metrics["all"] else "log loss"
    line = f"test: {name} {_log_loss(own)}{_auc(own)}; constants: {'; '.join(parts)}"
    return line + ("; the model predicts worse than a constant" if is_worse else ""), is_worse


def _weighted(metrics: CohortMetrics) -> Mapping[str, Any]:
    """Returns the metrics with the rows' weights, where they have any."""
    return metrics.get("weighted", metrics)


def _log_loss(metrics: Mapping[str, Any]) -> str:
    loss = metrics["log_loss"]
    return "-" if loss is None else f"{loss:.4f}"


def _auc(metrics: Mapping[str, Any]) -> str:
    return "" if metrics["auc"] is None else f" (AUC {metrics['auc']:.4f})"
