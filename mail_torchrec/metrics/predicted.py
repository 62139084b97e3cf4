"""Metrics of one predicted probability on the rows that it is judged on, group by group.

Shapes: ``R`` rows, ``J`` rows that are judged, ``P`` partitions of the rows into groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.exact_sums import UNIT_BITS
from mail_torchrec.metrics.partitions import Partition
from mail_torchrec.metrics.probability import ProbabilitySums, probability_sums
from mail_torchrec.metrics.ranking import NUM_BINS, GroupRanking, RankedRows


class TenthOfRows(TypedDict):
    """Calibration of a tenth of the rows by prediction; equal predictions are in one tenth."""

    rows: int
    predicted: float | None
    """Mean predicted probability; None without rows."""
    observed: float | None
    """Mean label; None without rows."""


class GroupMetrics(NamedTuple):
    """Metrics of one group of rows; None where undefined."""

    auc: float | None
    gauc: float | None
    log_loss: float | None
    normalised_entropy: float | None
    calibration: float | None

    @staticmethod
    def of(ranking: GroupRanking, sums: ProbabilitySums) -> "GroupMetrics":
        """Takes the metrics from what was computed of a group."""
        return GroupMetrics(
            None if math.isnan(ranking.auc) else ranking.auc,
            None if math.isnan(ranking.gauc) else ranking.gauc,
            sums.log_loss,
            sums.normalised_entropy,
            sums.calibration,
        )


class NamedMetrics(Protocol):
    """Metrics of one group of rows by name, a named tuple."""

    def _asdict(self) -> dict[str, float | None]: ...


class JudgedGroup(NamedTuple):
    """One group of rows and its metrics."""

    rows: int
    users: int
    rate: float | None
    """Mean label."""
    metrics: NamedMetrics
    weighted: NamedMetrics | None
    """With the rows' weights, where they have any."""
    tenths: list[TenthOfRows]


@dataclass(frozen=True)
class Prediction:
    """This rank's logits of one predicted probability.

    Args:
        prefix: of its metrics.
        logits_R: of the probability.
        labels_R: 0 or 1.
        is_judged_R: rows that it is judged on; None for all.
    """

    prefix: str
    logits_R: NDArray[Any]
    labels_R: NDArray[Any]
    is_judged_R: NDArray[np.bool_] | None = None

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
        codes_RP = np.stack([partition.codes_R for partition in partitions], axis=1)
        judged = slice(None) if self.is_judged_R is None else self.is_judged_R
        num_groups = tuple(len(partition.names) for partition in partitions)
        rows = RankedRows(
            self.logits_R[judged],
            self.labels_R[judged],
            users_R[judged],
            codes_RP[judged],
            num_groups,
        )
        ranked = rows.metrics()
        tenths_PJ = [
            _tenths(rows.scores_R, codes_J, of_partition)
            for codes_J, of_partition in zip(rows.codes_RP.T, ranked, strict=True)
        ]
        found = [_sums(rows, tenths_PJ, ranked)]
        if weights_R is not None:
            rows = replace(rows, weights_R=weights_R[judged])
            found.append(_sums(rows, tenths_PJ, rows.metrics()))
        return [
            [_group(*groups) for groups in zip(*of_partition, strict=True)]
            for of_partition in zip(*found, strict=True)
        ]


_Summed = tuple[GroupRanking, list[ProbabilitySums]]
"""Ranking metrics of a group, and the sums of its tenths."""


def _tenths(
    logits_J: NDArray[Any], codes_J: NDArray[np.uint16], ranked: Sequence[GroupRanking]
) -> NDArray[np.int64]:
    """Returns the tenth of its group that each row is in, all groups' tenths counted, [J]."""
    tenths_J = codes_J.astype(np.int64) * NUM_BINS
    for group, ranking in enumerate(ranked):
        own = np.flatnonzero(codes_J == group)
        tenths_J[own] += np.searchsorted(ranking.bounds, logits_J[own], "right")
    return tenths_J


def _sums(
    rows: RankedRows, tenths_PJ: Sequence[NDArray[np.int64]], ranked: list[list[GroupRanking]]
) -> list[list[_Summed]]:
    """Sums probabilities and losses by partition and group."""
    summed = []
    for tenths_J, of_partition in zip(tenths_PJ, ranked, strict=True):
        num_bins = NUM_BINS * len(of_partition)
        sums = probability_sums(rows.scores_R, rows.labels_R, tenths_J, num_bins, rows.weights_R)
        of_groups = [sums[start : start + NUM_BINS] for start in range(0, num_bins, NUM_BINS)]
        summed.append(list(zip(of_partition, of_groups, strict=True)))
    return summed


def _group(found: _Summed, weighted: _Summed | None = None) -> JudgedGroup:
    ranking, tenths = found
    total = reduce(ProbabilitySums.plus, tenths)
    return JudgedGroup(
        total.weight >> UNIT_BITS,
        ranking.users,
        total.rate,
        GroupMetrics.of(ranking, total),
        weighted and GroupMetrics.of(weighted[0], reduce(ProbabilitySums.plus, weighted[1])),
        [
            TenthOfRows(
                rows=tenth.weight >> UNIT_BITS,
                predicted=tenth.predicted_rate,
                observed=tenth.rate,
            )
            for tenth in tenths
        ],
    )
