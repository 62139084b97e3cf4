"""Metrics of an evaluation by cohort (new users' rows, old users' rows, all rows) and by column.

They are equal to the bit whatever the number of ranks, and whichever rank scored which rows.
Shape: ``R`` rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import world_size
from mail_torchrec.metrics.auc import auc, check_rows, gauc
from mail_torchrec.metrics.partitions import Partition, cohort_partitions
from mail_torchrec.metrics.predicted import JudgedGroup, NamedMetrics, Prediction, TenthOfRows
from mail_torchrec.metrics.regression import NumericPrediction

__all__ = [
    "CohortMetrics",
    "ConversionScores",
    "EvaluatedRows",
    "MetricsReport",
    "auc",
    "compute_metrics",
    "gauc",
]


class CohortMetrics(TypedDict):
    """Metrics of one cohort, ready for JSON; conversion metrics exist with conversion scores.

    Those of ``model.tasks`` stand beside them under ``TASK/NAME``: ``rows`` that count and ``mean``
    label; of a probability the metrics of clicks, of a number those of :class:`NumericMetrics`.
    Runs of older versions have neither log loss, normalised entropy nor calibration.
    """

    auc: float | None
    """None where one class is missing."""
    gauc: float | None
    """None where no user has both classes."""
    rows: int
    users: int
    ctr: NotRequired[float | None]
    """Clicks a row."""
    log_loss: NotRequired[float | None]
    normalised_entropy: NotRequired[float | None]
    """Log loss over the entropy of ``ctr``; None where one class is missing."""
    calibration: NotRequired[float | None]
    """Predicted clicks over clicks; None without clicks."""
    cvr_auc: NotRequired[float | None]
    """pCVR on the clicked rows: converted or not."""
    cvr_gauc: NotRequired[float | None]
    cvr_log_loss: NotRequired[float | None]
    cvr_normalised_entropy: NotRequired[float | None]
    cvr_calibration: NotRequired[float | None]
    ctcvr_auc: NotRequired[float | None]
    """pCTCVR on all rows: clicked and converted, or not."""
    ctcvr_gauc: NotRequired[float | None]
    ctcvr_log_loss: NotRequired[float | None]
    ctcvr_normalised_entropy: NotRequired[float | None]
    ctcvr_calibration: NotRequired[float | None]
    weighted: NotRequired[dict[str, float | None]]
    """The same metrics with the rows' weights, where they have any."""


@dataclass(frozen=True)
class ConversionScores:
    """Scores of conversions: logits of the predicted probabilities."""

    labels: NDArray[Any]
    """1 where the row was clicked and converted, else 0, ``[rows]``."""
    cvr: NDArray[Any]
    """Logits of a conversion given a click, ``[rows]``."""
    ctcvr: NDArray[Any]
    """Logits of a click and a conversion, ``[rows]``."""


@dataclass(frozen=True)
class TaskScores:
    """Predictions of a task of ``model.tasks``, whose metrics are called ``NAME/auc`` and so on."""

    name: str
    scores_R: NDArray[Any]
    """Logits of a probability, or logs of an expected value, ``[rows]``."""
    targets_R: NDArray[Any]
    """0 or 1, or numbers; NaN on rows that do not count, ``[rows]``."""
    is_number: bool
    """Whether a number is predicted instead of a probability."""

    def prediction(self) -> Prediction | NumericPrediction:
        """Returns what is judged."""
        if self.is_number:
            return NumericPrediction(f"{self.name}/", self.scores_R, self.targets_R)
        is_counted_R = ~np.isnan(self.targets_R)
        return Prediction(f"{self.name}/", self.scores_R, self.targets_R == 1, is_counted_R)


@dataclass(frozen=True)
class EvaluatedRows:
    """This rank's evaluated rows.

    Args:
        scores_R: logits of a click.
        labels_R: 0 or 1.
        users_R: hash of the row's user, int64.
        is_new_R: true on rows that are reported as new users'.
        conversions: scores of conversions, where they are predicted too.
        weights_R: weight of each row, not negative; None where the rows have none.
        columns: column -> its partition of the rows.
        training_shift: what is added to a logit of training rows to get one of these rows, where
            the unclicked rows of either are a sample.
        tasks: predictions of further tasks.
        is_new_item_R: true on rows that are reported as new items'; None where nothing says which
            items are new.
    """

    scores_R: NDArray[Any]
    labels_R: NDArray[Any]
    users_R: NDArray[Any]
    is_new_R: NDArray[Any]
    conversions: ConversionScores | None = None
    weights_R: NDArray[Any] | None = None
    columns: Mapping[str, Partition] = field(default_factory=dict)
    training_shift: float = 0.0
    tasks: Sequence[TaskScores] = ()
    is_new_item_R: NDArray[Any] | None = None

    def predictions(self) -> list[Prediction | NumericPrediction]:
        """Lists what is predicted, each with the rows that it is judged on."""
        found: list[Prediction | NumericPrediction] = [
            Prediction("", self.scores_R, self.labels_R),
            *(task.prediction() for task in self.tasks),
        ]
        if (conversions := self.conversions) is not None:
            is_clicked_R = self.labels_R == 1
            found += [
                Prediction("cvr_", conversions.cvr, conversions.labels, is_clicked_R),
                Prediction("ctcvr_", conversions.ctcvr, conversions.labels),
            ]
        return found


@dataclass(frozen=True)
class MetricsReport:
    """Metrics of all ranks' rows, the same on every rank."""

    cohorts: dict[str, CohortMetrics]
    """Of new users' rows, old users' rows and all rows; with new items, of theirs too."""
    by: dict[str, dict[str, CohortMetrics]]
    """Column -> value -> metrics of the rows that have it."""
    tenths: dict[str, dict[str, list[TenthOfRows]]]
    """Prediction (``pctr``, ``pcvr``, ``pctcvr``) -> cohort -> calibration by tenth of the rows,
    those with the lowest predictions first."""

    @staticmethod
    def of(rows: EvaluatedRows) -> "MetricsReport":
        """Computes the metrics; every rank calls it with its own rows.

        Raises:
            ValueError: the shapes differ, a score is nan, a label is neither 0 nor 1, or a weight
                is negative.
        """
        users_R = _checked_users(rows)
        by_cohort = cohort_partitions(rows.is_new_R, rows.is_new_item_R)
        partitions = [*by_cohort, *rows.columns.values()]
        judged = {
            prediction.prefix: prediction.judge(users_R, partitions, rows.weights_R)
            for prediction in rows.predictions()
        }
        named = [
            {
                name: {prefix: found[number][group] for prefix, found in judged.items()}
                for group, name in enumerate(partition.names)
            }
            for number, partition in enumerate(partitions)
        ]
        cohorts = {name: of for groups in named[: len(by_cohort)] for name, of in groups.items()}
        columns = dict(zip(rows.columns, named[len(by_cohort) :], strict=True))
        return MetricsReport(
            {name: _metrics(groups) for name, groups in cohorts.items()},
            {
                column: {name: _metrics(of) for name, of in groups.items() if of[""].rows}
                for column, groups in columns.items()
            },
            {
                f"p{prefix or 'ctr_'}"[:-1]: {
                    name: groups[prefix].tenths for name, groups in cohorts.items()
                }
                for prefix, found in judged.items()
                if found[0][0].tenths
            },
        )


def compute_metrics(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    is_new: NDArray[Any],
    conversions: ConversionScores | None = None,
    weights: NDArray[Any] | None = None,
) -> dict[str, CohortMetrics]:
    """Computes the metrics of new users' rows, old users' rows and all rows.

    Every rank calls it with its own rows, and returns the metrics of all.

    Args:
        scores: logits of a click, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: the row's user as an integer (a hash), or in one process as a string, ``[rows]``.
        is_new: true on rows that are reported as new users', ``[rows]``.
        conversions: scores of conversions, where they are predicted too.
        weights: of the rows, not negative, ``[rows]``.

    Returns:
        ``{"new": {"auc", "gauc", "rows", "users", ...}, "old": ..., "all": ...}``, with conversions
        also ``cvr_auc`` and the others of :class:`CohortMetrics`; undefined metrics are None.

    Raises:
        ValueError: as :meth:`MetricsReport.of`.
    """
    rows = EvaluatedRows(scores, labels, users, is_new, conversions, weights)
    return MetricsReport.of(rows).cohorts


def _checked_users(rows: EvaluatedRows) -> NDArray[np.int64]:
    """Checks the shapes and values of the rows; returns their users as integers, [R]."""
    if rows.is_new_R.shape != rows.scores_R.shape:
        raise ValueError(
            "metrics: is_new should have one entry a row, received shape "
            f"{rows.is_new_R.shape} for {len(rows.scores_R)} scores"
        )
    check_rows(rows.scores_R, rows.labels_R, rows.users_R, rows.weights_R)
    if (conversions := rows.conversions) is not None:
        for logits in (conversions.cvr, conversions.ctcvr):
            check_rows(logits, conversions.labels, rows.users_R)
    for task in rows.tasks:
        check_rows(task.scores_R, rows.labels_R, rows.users_R)
    if rows.users_R.dtype.kind in "iu":
        return rows.users_R.astype(np.int64)
    assert world_size() == 1, "ranks know users by their hashes"
    return np.unique(rows.users_R, return_inverse=True)[1]


def _metrics(judged: Mapping[str, JudgedGroup]) -> CohortMetrics:
    """Merges the metrics of a group's predictions, by their prefixes, into one mapping."""
    clicks = judged[""]
    metrics: dict[str, Any] = dict.fromkeys(("auc", "gauc"))
    metrics |= {"rows": clicks.rows, "users": clicks.users, "ctr": clicks.rate}
    for prefix, group in judged.items():
        if prefix.endswith("/"):
            metrics |= {f"{prefix}rows": group.rows, f"{prefix}mean": group.rate}
        metrics |= _prefixed(prefix, group.metrics)
    if clicks.weighted is not None:
        metrics["weighted"] = {}
        for prefix, group in judged.items():
            assert group.weighted is not None
            metrics["weighted"] |= _prefixed(prefix, group.weighted)
    return cast(CohortMetrics, metrics)


def _prefixed(prefix: str, metrics: NamedMetrics) -> dict[str, float | None]:
    return {f"{prefix}{name}": value for name, value in metrics._asdict().items()}
