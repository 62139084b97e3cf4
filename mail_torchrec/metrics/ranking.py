"""AUC and GAUC of groups of the rows of all ranks, none of which holds all of them.

The rows are sorted over the ranks by score for AUC, and dealt by users for GAUC. All sums are
exact: the result is the same to the bit, whatever rank had which rows. Shapes: ``R`` rows, ``P``
partitions of the rows into groups, ``G`` groups of a partition, ``T`` ties (rows of one group and
one score).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import gather_objects, rank
from mail_torchrec.metrics.exact_sums import exact_sums
from mail_torchrec.metrics.exchange import exchange_by_key, exchange_by_score
from mail_torchrec.metrics.fixed_point import fixed_point, overflows, unit_bits
from mail_torchrec.metrics.ties import Ints, Ties, auc_of_pairs, mean_auc

NUM_BINS = 10
"""Parts of the rows by prediction, of about equal numbers of rows."""
_MAX_ROWS = 2**32


class GroupRanking(NamedTuple):
    """Ranking metrics of one group of rows."""

    auc: float
    """nan where one class is missing."""
    gauc: float
    """nan where no user has both classes."""
    users: int
    bounds: NDArray[np.float64]
    """Smallest score of each tenth of the rows but the first, ``[9]``, infinite where it is empty.
    Equal scores are in one tenth, that of the first of them."""


@dataclass(frozen=True)
class RankedRows:
    """This rank's rows of one prediction.

    Args:
        scores_R: any monotone function of the predicted probability.
        labels_R: 0 or 1.
        users_R: hash of the user, int64.
        codes_RP: group of each row in each partition (uint16).
        num_groups: number of groups of each partition.
        weights_R: not negative; None for 1 each.
    """

    scores_R: NDArray[Any]
    labels_R: NDArray[Any]
    users_R: Ints
    codes_RP: NDArray[np.uint16]
    num_groups: tuple[int, ...]
    weights_R: NDArray[Any] | None = None

    def metrics(self) -> list[list[GroupRanking]]:
        """Computes the metrics of all ranks' rows, by partition and group; every rank calls it.

        Raises:
            ValueError: there are 2**32 rows or more.
        """
        units_R, as_float = self._units()
        aucs, bounds = self._by_score(units_R, as_float)
        gaucs, users = self._by_user(units_R, as_float)
        return [
            [GroupRanking(*found) for found in zip(*of_partition, strict=True)]
            for of_partition in zip(aucs, gaucs, users, bounds, strict=True)
        ]

    def _units(self) -> tuple[Ints | NDArray[np.uint8], bool]:
        """Returns the weights as integers, and whether sums of their products need doubles."""
        weights_R = np.ones(len(self.scores_R), np.uint8)
        largest = 0.0 if self.weights_R is None else float(self.weights_R.max(initial=0))
        shares = gather_objects((len(weights_R), largest))
        num_rows, largest = sum(num for num, _ in shares), max(each for _, each in shares)
        if num_rows >= _MAX_ROWS:
            raise ValueError(
                f"metrics: there should be fewer than {_MAX_ROWS:,} rows, received {num_rows:,}; "
                "evaluate on a part of them"
            )
        if self.weights_R is None:
            return weights_R, False
        units_R = fixed_point(self.weights_R, unit_bits(largest, num_rows))
        return units_R, overflows(sum(gather_objects(int(units_R.sum()))))

    def _records(self, units_R: NDArray[Any], count: Any, *keys: tuple[str, Any]) -> NDArray[Any]:
        """Packs rows for an exchange; ``count`` is the type of their weights."""
        codes = ("codes", np.uint16, (len(self.num_groups),))
        kinds = ("positives", count), ("negatives", count)
        records_R = np.empty(
            len(self.scores_R), [("score", self.scores_R.dtype), *keys, codes, *kinds]
        )
        records_R["score"], records_R["codes"] = self.scores_R, self.codes_RP
        records_R["positives"] = units_R * (self.labels_R == 1)
        records_R["negatives"] = units_R * (self.labels_R == 0)
        return records_R

    def _by_score(
        self, units_R: NDArray[Any], as_float: bool
    ) -> tuple[list[list[float]], list[list[NDArray[np.float64]]]]:
        """Computes AUC and bounds of the tenths, by partition and group."""
        records_R = self._records(units_R, np.int64)
        records_R = exchange_by_score(_merge(records_R[np.argsort(records_R["score"])]))
        order = np.argsort(records_R["score"], kind="stable")
        counts = [
            _count(records_R, number, num) for number, num in enumerate(self.num_groups)
        ]  # [2, G] of each partition
        of_ranks = gather_objects(counts)
        aucs, bounds = [], []
        for number, num in enumerate(self.num_groups):
            offsets = sum((of[number] for of in of_ranks[: rank()]), np.zeros((2, num), np.int64))
            totals = sum((of[number] for of in of_ranks), np.zeros((2, num), np.int64))
            ties = _ties(records_R, order, number)
            twice = _sum_over_ranks(_twice(ties, offsets[1], as_float))
            aucs.append(
                [
                    auc_of_pairs(pairs, positives, negatives, as_float)
                    for pairs, positives, negatives in zip(twice, *totals.tolist(), strict=True)
                ]
            )
            own = _bounds(ties, offsets.sum(0), totals.sum(0))
            bounds.append(list(np.minimum.reduce(gather_objects(own))))
        return aucs, bounds

    def _by_user(
        self, units_R: NDArray[Any], as_float: bool
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Computes GAUC and number of users, by partition and group."""
        records_R = self._records(units_R, units_R.dtype, ("key", np.int64))
        records_R["key"] = self.users_R
        records_R = exchange_by_key(records_R)
        order = np.argsort(records_R["score"], kind="stable")
        order = order[np.argsort(records_R["key"][order], kind="stable")]  # faster than lexsort
        gaucs, users = [], []
        for number, num in enumerate(self.num_groups):
            totals, weights, counts = _user_totals(records_R, order, number, num, as_float)
            totals, weights, counts = map(_sum_over_ranks, (totals, weights, counts))
            gaucs.append([mean_auc(*each) for each in zip(totals, weights, strict=True)])
            users.append(counts)
        return gaucs, users


def _merge(records_R: NDArray[Any]) -> NDArray[Any]:
    """Merges rows of one score and the same groups, where many rows have one score.

    So a model that gives all rows one score does not send all of them to one rank.

    Args:
        records_R: rows, their scores rising.
    """
    scores_R = records_R["score"]
    is_first_R = np.append(True, scores_R[1:] != scores_R[:-1])[: len(scores_R)]
    if 2 * is_first_R.sum() > len(records_R):
        return records_R
    codes_RP = records_R["codes"]
    order = np.lexsort((*codes_RP.T, np.cumsum(is_first_R)))
    records_R, is_same_R = records_R[order], (codes_RP[order[1:]] == codes_RP[order[:-1]]).all(1)
    # Sorting within one score leaves the places where the next score begins.
    starts = np.flatnonzero(is_first_R | np.append(True, ~is_same_R)[: len(scores_R)])
    merged_T = records_R[starts]
    for kind in ("positives", "negatives"):
        merged_T[kind] = np.add.reduceat(records_R[kind], starts) if len(starts) else 0
    return merged_T


def _count(records_R: NDArray[Any], number: int, num_groups: int) -> Ints:
    """Sums the weights of positives and negatives by group of a partition, [2, G]."""
    counts = np.zeros((2, num_groups), np.int64)
    for sums_G, kind in zip(counts, ("positives", "negatives"), strict=True):
        np.add.at(sums_G, records_R["codes"][:, number], records_R[kind])
    return counts


def _ties(records_R: NDArray[Any], order: Ints, number: int) -> Ties:
    """Sorts rows that are sorted by score by their group of a partition."""
    order = _sorted_by_group(records_R, order, number)
    codes_R = records_R["codes"][order, number]
    columns = (records_R[name][order] for name in ("score", "positives", "negatives"))
    return Ties.of_sorted(codes_R, *columns)


def _sorted_by_group(records_R: NDArray[Any], order: Ints, number: int) -> Ints:
    codes_R = records_R["codes"][order, number]
    sorted_order: Ints = order[np.argsort(codes_R, kind="stable")]
    return sorted_order


def _twice(ties: Ties, offsets_G: Ints, as_float: bool) -> list[int]:
    """Sums twice the concordant pairs of this rank's positives by group, in exact integers."""
    twice_T = ties.twice_concordant(offsets_G, as_float=as_float)
    if as_float:
        return exact_sums(twice_T, ties.groups_T, len(offsets_G))
    sums: list[int] = ties.group_sums(twice_T, len(offsets_G)).tolist()
    return sums


def _bounds(ties: Ties, offsets_G: Ints, totals_G: Ints) -> NDArray[np.float64]:
    """Finds the smallest score of each tenth but the first that begins on this rank, [G, 9]."""
    below_T = ties.below(ties.positives_T + ties.negatives_T, offsets_G)
    starts = np.searchsorted(ties.groups_T, np.arange(len(totals_G) + 1))
    bounds = np.full((len(totals_G), NUM_BINS - 1), np.inf)
    for group, total in enumerate(totals_G.tolist()):
        own = slice(starts[group], starts[group + 1])
        scores_T = np.append(ties.scores_T[own].astype(np.float64), np.inf)
        # Whole numbers: the part of the rows below is number / NUM_BINS or more.
        least = -(-np.arange(1, NUM_BINS) * total // NUM_BINS)
        bounds[group] = scores_T[np.searchsorted(below_T[own], least)]
    return bounds


def _user_totals(
    records_R: NDArray[Any], order: Ints, number: int, num_groups: int, as_float: bool
) -> tuple[list[int], list[int], list[int]]:
    """Sums AUCs and weights of users, and counts users, by group; rows sorted by user and score."""
    order = _sorted_by_group(records_R, order, number)
    codes_R, users_R = records_R["codes"][order, number], records_R["key"][order]
    is_first_R = np.append(True, (codes_R[1:] != codes_R[:-1]) | (users_R[1:] != users_R[:-1]))
    is_first_R = is_first_R[: len(codes_R)]
    columns = (records_R[name][order] for name in ("score", "positives", "negatives"))
    ties = Ties.of_sorted(np.cumsum(is_first_R) - 1, *columns)
    codes_U = codes_R[is_first_R].astype(np.int64)
    totals, weights = ties.group_aucs(len(codes_U), as_float=as_float).totals(codes_U, num_groups)
    return totals, weights, np.bincount(codes_U, minlength=num_groups).tolist()


def _sum_over_ranks(values: Sequence[int]) -> list[int]:
    """Adds up integers of any size, place by place."""
    return [sum(of_ranks) for of_ranks in zip(*gather_objects(list(values)), strict=True)]
