"""Metrics of one predicted number, such as a watch time, group by group.

Sums are exact: the same to the bit, whatever rank had which rows. Shapes: ``R`` rows, ``J`` rows
that are judged, ``P`` partitions of the rows into groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import gather_objects
from mail_torchrec.metrics.exact_sums import UNIT_BITS, exact_sums
from mail_torchrec.metrics.partitions import Partition
from mail_torchrec.metrics.predicted import JudgedGroup
from mail_torchrec.metrics.ranking import GroupRanking, RankedRows

_MAX_LOG = 80.0
_Rankings = list[list[GroupRanking]]


class NumericMetrics(NamedTuple):
    """Metrics of the predicted numbers of one group of rows; None where undefined."""

    mae: float | None
    """Mean absolute error."""
    rmse: float | None
    """Root of the mean squared error."""
    calibration: float | None
    """Sum of the predictions over the sum of the labels; None where these are all 0."""
    gini: float | None
    """Normalised Gini coefficient: 1 where the predictions order the rows as the labels do, 0 where
    they say nothing; None where all labels are equal."""


class _Sums(NamedTuple):
    """Weighted sums over the rows of one group, in units of ``exact_sums``."""

    weight: int
    labels: int
    predicted: int
    absolute: int
    squared: int


@dataclass(frozen=True)
class NumericPrediction:
    """This rank's predictions of one number.

    Args:
        prefix: of its metrics.
        logs_R: logs of the predicted numbers.
        labels_R: not negative; NaN on rows that are not judged.
    """

    prefix: str
    logs_R: NDArray[Any]
    labels_R: NDArray[Any]

    def judge(
        self,
        users_R: NDArray[np.int64],
        partitions: Sequence[Partition],
        weights_R: NDArray[Any] | None,
    ) -> list[list[JudgedGroup]]:
        """Computes the metrics by partition and group; every rank calls it.

        Args:
            users_R: hash of the user.
            partitions: of the rows.
            weights_R: not negative; None for 1 each.
        """
        judged = np.flatnonzero(~np.isnan(self.labels_R))
        codes_JP = np.stack([partition.codes_R[judged] for partition in partitions], axis=1)
        num_groups = tuple(len(partition.names) for partition in partitions)
        rows = _Rows(
            self.logs_R[judged],
            self.labels_R[judged].astype(np.float64),
            users_R[judged],
            codes_JP,
            num_groups,
        )
        plain = rows.metrics(np.ones(len(judged)))
        weighted = None if weights_R is None else rows.metrics(weights_R[judged])
        return [
            [
                group if weighted is None else group._replace(weighted=weighted[p][g].metrics)
                for g, group in enumerate(of_partition)
            ]
            for p, of_partition in enumerate(plain)
        ]


@dataclass(frozen=True)
class _Rows:
    """Rows that are judged: logs, labels and users [J], codes of their groups [J, P]."""

    logs_J: NDArray[Any]
    labels_J: NDArray[np.float64]
    users_J: NDArray[np.int64]
    codes_JP: NDArray[np.uint16]
    num_groups: tuple[int, ...]

    def metrics(self, weights_J: NDArray[Any]) -> list[list[JudgedGroup]]:
        """Computes the metrics by partition and group under weights of the rows."""
        ranked = self._rank(self.logs_J, weights_J)
        best = self._rank(self.labels_J, weights_J)
        return [
            [
                _group(*parts)
                for parts in zip(self._sums(p, weights_J), ranked[p], best[p], strict=True)
            ]
            for p in range(len(self.num_groups))
        ]

    def _rank(self, scores_J: NDArray[Any], weights_J: NDArray[Any]) -> _Rankings:
        """Ranks the rows by scores.

        Each row is a positive of the weight of its label, and a negative: of such rows,
        ``2 AUC - 1`` is the Gini coefficient times the same number for all scores.
        """
        twice = [np.concatenate([array, array]) for array in (scores_J, self.users_J)]
        is_positive = np.repeat([1, 0], len(scores_J))
        weights = np.concatenate([weights_J * self.labels_J, weights_J])
        codes = np.concatenate([self.codes_JP, self.codes_JP])
        return RankedRows(
            twice[0], is_positive, twice[1], codes, self.num_groups, weights
        ).metrics()

    def _sums(self, partition: int, weights_J: NDArray[Any]) -> list[_Sums]:
        """Sums labels, predictions and errors of all ranks' rows by group."""
        weights_J = weights_J.astype(np.float64)
        predicted_J = np.exp(np.minimum(self.logs_J.astype(np.float64), _MAX_LOG))
        errors_J = predicted_J - self.labels_J
        values = np.ones_like(errors_J), self.labels_J, predicted_J, abs(errors_J), errors_J**2
        codes_J, num = self.codes_JP[:, partition], self.num_groups[partition]
        own = [exact_sums(values_J * weights_J, codes_J, num) for values_J in values]
        return [
            _Sums(*(sum(of_ranks) for of_ranks in zip(*group, strict=True)))
            for group in zip(
                *(zip(*of_rank, strict=True) for of_rank in gather_objects(own)), strict=True
            )
        ]


def _group(sums: _Sums, ranked: GroupRanking, best: GroupRanking) -> JudgedGroup:
    def mean(total: int) -> float | None:
        return total / sums.weight if sums.weight else None

    squared = mean(sums.squared)
    metrics = NumericMetrics(
        mae=mean(sums.absolute),
        rmse=None if squared is None else math.sqrt(squared),
        calibration=sums.predicted / sums.labels if sums.labels else None,
        gini=_gini(ranked.auc, best.auc),
    )
    rows = sums.weight >> UNIT_BITS
    return JudgedGroup(rows, ranked.users, mean(sums.labels), metrics, None, [])


def _gini(auc: float, best: float) -> float | None:
    if math.isnan(auc) or best <= 0.5:
        return None
    return (2 * auc - 1) / (2 * best - 1)
