"""Ties of sorted rows, the pairs that they win, and the AUCs of groups of them.

All counts and weights are integers. Shapes: ``R`` rows, ``T`` ties (rows of one group and one
score), ``G`` groups, ``U`` users.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.metrics.exact_sums import UNIT_BITS, exact_sums

Ints = NDArray[np.int64]


class Ties(NamedTuple):
    """Rows of one group and one score each, sorted by group and score."""

    groups_T: Ints
    """Group of each tie, rising."""
    scores_T: NDArray[Any]
    """Its score, rising within the group."""
    positives_T: Ints
    """Weight of its rows with label 1."""
    negatives_T: Ints
    """Weight of its rows with label 0."""

    @staticmethod
    def of_sorted(
        groups_R: NDArray[Any],
        scores_R: NDArray[Any],
        positives_R: NDArray[Any],
        negatives_R: NDArray[Any],
    ) -> "Ties":
        """Merges the rows of each tie.

        Args:
            groups_R: rising groups, from 0.
            scores_R: rising within each group.
            positives_R: weight of each row with label 1, 0 for others.
            negatives_R: weight of each row with label 0, 0 for others.
        """
        if not len(scores_R):
            return Ties(np.zeros(0, np.int64), scores_R, *(np.zeros((2, 0), np.int64)))
        starts = _starts(groups_R, scores_R)
        sums = (
            np.add.reduceat(kind, starts, dtype=np.int64) for kind in (positives_R, negatives_R)
        )
        return Ties(groups_R[starts].astype(np.int64), scores_R[starts], *sums)

    def below(self, counts_T: Ints, offsets_G: Ints) -> Ints:
        """Sums the counts of the group's ties with lower scores, [T].

        Args:
            counts_T: count of each tie.
            offsets_G: counts of the group's rows that are elsewhere, all with lower scores.
        """
        starts = _starts(self.groups_T)
        below_T: Ints = np.cumsum(counts_T) - counts_T
        shifts = offsets_G[self.groups_T[starts]] - below_T[starts]
        below_T += np.repeat(shifts, np.diff(starts, append=len(below_T)))
        return below_T

    def twice_concordant(self, offsets_G: Ints, *, as_float: bool) -> NDArray[Any]:
        """Computes twice the concordant pairs of each tie's positives, equal scores half, [T].

        Args:
            offsets_G: negatives of the group that are elsewhere, all with lower scores.
            as_float: round to doubles, where integers of 64 bits would overflow.
        """
        dtype = np.float64 if as_float else np.int64
        below_T = 2 * self.below(self.negatives_T, offsets_G) + self.negatives_T
        products_T: NDArray[Any] = self.positives_T.astype(dtype) * below_T.astype(dtype)
        return products_T

    def group_sums(self, values_T: NDArray[Any], num_groups: int) -> NDArray[Any]:
        """Sums values by group, those of a group in rising order of the scores, [G].

        Args:
            values_T: integers or doubles.
            num_groups: G.
        """
        if values_T.dtype == np.float64:
            return np.bincount(self.groups_T, values_T, num_groups)
        sums_G, starts = np.zeros(num_groups, np.int64), _starts(self.groups_T)
        if len(starts):
            sums_G[self.groups_T[starts]] = np.add.reduceat(values_T, starts)
        return sums_G

    def group_aucs(self, num_groups: int, *, as_float: bool) -> "UserAucs":
        """Computes the AUC of each group, all of whose rows are here.

        Arguments as above.
        """
        twice_G = self.group_sums(
            self.twice_concordant(np.zeros(num_groups, np.int64), as_float=as_float), num_groups
        )
        positives_G, negatives_G = (
            self.group_sums(kind_T, num_groups) for kind_T in (self.positives_T, self.negatives_T)
        )
        dtype = np.float64 if as_float else np.int64
        pairs_G = positives_G.astype(dtype) * negatives_G.astype(dtype)
        weights_G = np.where(pairs_G > 0, positives_G + negatives_G, 0)
        return UserAucs(twice_G / np.where(pairs_G > 0, 2 * pairs_G, 1), weights_G)


class UserAucs(NamedTuple):
    """AUC of each user's rows, for their mean."""

    aucs_U: NDArray[np.float64]
    """0 for users of one class."""
    weights_U: Ints
    """Weight of the user's rows together; 0 for users of one class, who are left out."""

    def totals(self, groups_U: Ints, num_groups: int) -> tuple[list[int], list[int]]:
        """Sums weighted AUCs, in units of ``exact_sums``, and weights, by group of users.

        Args:
            groups_U: group of each user.
            num_groups: number of groups.
        """
        weights = np.zeros(num_groups, np.int64)
        np.add.at(weights, groups_U, self.weights_U)
        return exact_sums(self.weights_U * self.aucs_U, groups_U, num_groups), weights.tolist()


def auc_of_pairs(twice_concordant: int, positives: int, negatives: int, as_float: bool) -> float:
    """Divides sums of :meth:`Ties.twice_concordant` by the pairs; nan where there are none."""
    pairs = 2 * positives * negatives << (UNIT_BITS if as_float else 0)
    return twice_concordant / pairs if pairs else float("nan")


def mean_auc(total: int, weight: int) -> float:
    """Divides sums of :meth:`UserAucs.totals`; nan where no user has both classes."""
    return total / (weight << UNIT_BITS) if weight else float("nan")


def _starts(*columns_R: NDArray[Any]) -> Ints:
    """Finds the rows that differ from the one before in any column."""
    is_first_R = np.ones(len(columns_R[0]), np.bool_)
    is_first_R[1:] = np.any([column[1:] != column[:-1] for column in columns_R], axis=0)
    return np.flatnonzero(is_first_R)
