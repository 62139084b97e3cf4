"""Behaviour histories as features: what a user did, and how well the target item fits to it.

Items of a history have latent factors, by a truncated singular value decomposition of the
normalised matrix of users and items; a history's factors are the mean of its items'.

Shapes: ``R`` rows, ``I`` ids of a table, ``K`` factors, ``V`` history entries end to end, ``T``
statistics of a history.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.diagnose.features import FeatureGroup, Features, Floats, Ints, Rows

_FACTORS = 16
_MOST_ACTIONS = 20
"""Values of an aligned list whose shares are features, at most."""
_SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class Sequence:
    """One behaviour sequence of all rows.

    Args:
        name: its column.
        rows_V: row of each entry.
        ids_V: item of each entry.
        lengths_R: entries of each row.
        factors_IK: of the items, 0 for items that no training history has.
        target_R: the target item of each row.
    """

    name: str
    rows_V: Ints
    ids_V: Ints
    lengths_R: Ints
    factors_IK: Floats
    target_R: Ints

    def mean(self, values_IK: Floats) -> Floats:
        """Returns the mean [R, K] of values of each history's items, 0 where it is empty.

        Args:
            values_IK: of the items.
        """
        shape = len(self.lengths_R), len(values_IK)
        weights_V = 1 / self.lengths_R[self.rows_V]
        means_RK: Floats = (
            sp.csr_array((weights_V, (self.rows_V, self.ids_V)), shape=shape) @ values_IK
        )
        return means_RK

    @property
    def matches_R(self) -> Floats:
        """Number of a history's entries that are the target item."""
        matches_V = self.ids_V == self.target_R[self.rows_V]
        counts_R = np.bincount(self.rows_V[matches_V], minlength=len(self.lengths_R))
        return counts_R.astype(np.float64)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the histories of all rows, known or predicted.

    Args:
        names: of the statistics; those of factors are the sequence's name and a number.
        values_RT: statistics.
        scales_T: of each statistic: of factors the root mean square of their entries, 1 of others.
        num_factors: leading statistics of each sequence that are its factors.
    """

    names: list[str]
    values_RT: Floats
    scales_T: Floats
    num_factors: dict[str, int]

    def factors(self, sequence: str) -> Floats:
        """Returns the factors [R, K] of a sequence."""
        first = self.names.index(f"{sequence} factor 1")
        return self.values_RT[:, first : first + self.num_factors[sequence]]


def read_sequences(rows: Rows) -> list[Sequence]:
    """Returns the behaviour sequences, with factors of their items fitted on training users."""
    return [_sequence(name, rows) for name in rows.schema.sequences]


def _sequence(name: str, rows: Rows) -> Sequence:
    schema, jagged = rows.schema, rows.rows.lists[name]
    target_R = rows.rows.scalars_CR[schema.scalars.index(schema.target_of(name))]
    lengths_R = jagged.lengths
    known, places = np.unique(np.concatenate([jagged.values, target_R]), return_inverse=True)
    ids_V, target_R = places[: -len(target_R)], places[-len(target_R) :]
    rows_V = np.repeat(np.arange(len(lengths_R)), lengths_R)
    factors_IK = _factors(ids_V, rows_V, lengths_R, len(known), rows)
    return Sequence(name, rows_V, ids_V, lengths_R, factors_IK, target_R)


def _factors(ids_V: Ints, rows_V: Ints, lengths_R: Ints, num_ids: int, rows: Rows) -> Floats:
    """Fits factors [I, K] on the last row with a history of each training user."""
    chosen_R = last_rows(rows, lengths_R > 0)
    is_chosen_R = np.zeros(len(lengths_R), np.bool_)
    is_chosen_R[chosen_R] = True
    places_R = np.cumsum(is_chosen_R) - 1
    taken_V = is_chosen_R[rows_V]
    counts = sp.csr_array(
        (np.ones(taken_V.sum()), (places_R[rows_V[taken_V]], ids_V[taken_V])),
        shape=(len(chosen_R), num_ids),
    )
    counts.data[:] = 1.0
    by_id_I, by_user = counts.sum(axis=0), counts.sum(axis=1)
    # Without the mean degrees, each item that one user alone has is a factor of its own, and the
    # leading one is constant (regularised spectral clustering; Qin and Rohe, NIPS 2013).
    scale_I = 1 / np.sqrt(np.maximum(by_id_I + by_id_I.sum() / max((by_id_I > 0).sum(), 1), 1))
    scale = 1 / np.sqrt(np.maximum(by_user + by_user.mean(), 1))
    normal = sp.diags_array(scale) @ counts @ sp.diags_array(scale_I)
    num_factors = min(_FACTORS, len(chosen_R) - 1, int((by_id_I > 0).sum()) - 1)
    if num_factors < 1:
        return np.zeros((num_ids, 1))
    fitted = TruncatedSVD(num_factors, random_state=0).fit(normal)
    factors_IK: Floats = fitted.components_.T * scale_I[:, None]
    deviation = np.sqrt((by_id_I @ factors_IK**2) / max(by_id_I.sum(), 1))
    # Weighed by the singular values, so that factors of noise do not drown the others in products.
    factors_IK *= fitted.singular_values_ / np.maximum(deviation, 1e-12)
    return factors_IK


def last_rows(rows: Rows, is_known_R: np.ndarray, *, of_test: bool = False) -> Ints:
    """Returns the last training row of each user, of those that are known, in order.

    Args:
        rows: training and test rows.
        is_known_R: rows that may be chosen, [R].
        of_test: the last test row instead.
    """
    is_test_R = np.arange(len(is_known_R)) >= rows.num_train
    candidates = np.flatnonzero(is_known_R & (is_test_R == of_test))[::-1]
    _, first = np.unique(rows.rows.users_R[candidates], return_index=True)
    return np.sort(candidates[first])


def statistics(sequences: list[Sequence], rows: Rows) -> Statistics:
    """Computes the statistics of each row's histories: factors, log lengths, shares of actions."""
    names: list[str] = []
    columns: list[Floats] = []
    scales: list[float] = []
    num_factors: dict[str, int] = {}
    for sequence in sequences:
        history_RK = sequence.mean(sequence.factors_IK)
        num_factors[sequence.name] = history_RK.shape[1]
        names += [f"{sequence.name} factor {k + 1}" for k in range(history_RK.shape[1])]
        columns += list(history_RK.T)
        entries_VK = sequence.factors_IK[sequence.ids_V]
        scales += np.sqrt((entries_VK**2).mean(axis=0)).tolist()
        names.append(f"{sequence.name} log length")
        columns.append(np.log1p(sequence.lengths_R))
        for aligned in rows.schema.actions_of(sequence.name):
            for share, values_R in _shares(aligned, rows, sequence):
                names.append(share)
                columns.append(values_R)
        scales += [1.0] * (len(names) - len(scales))
    return Statistics(names, np.stack(columns, axis=1), np.array(scales), num_factors)


def _shares(aligned: str, rows: Rows, sequence: Sequence) -> Iterator[tuple[str, Floats]]:
    """Yields the share [R] of each frequent value of a list aligned with a sequence."""
    if aligned not in rows.schema.lists:
        return
    values, codes_V = np.unique(rows.rows.lists[aligned].values, return_inverse=True)
    if not 2 <= len(values) <= _MOST_ACTIONS or len(codes_V) != len(sequence.rows_V):
        return
    for code in range(len(values)):
        is_value_V = codes_V == code
        if _SMALLEST_SHARE < is_value_V.mean() < 1 - _SMALLEST_SHARE:
            counts_R = np.bincount(sequence.rows_V, is_value_V, minlength=len(sequence.lengths_R))
            yield f"{aligned} share {code}", counts_R / np.maximum(sequence.lengths_R, 1)


def add_item_factors(features: Features, sequences: list[Sequence]) -> None:
    """Adds the factors of the target item, by the histories that it stands in."""
    for sequence in sequences:
        for factor_I in sequence.factors_IK.T:
            features.add(FeatureGroup.ITEM_ID, factor_I[sequence.target_R])


def add_statistics(
    features: Features,
    found: Statistics,
    sequences: list[Sequence],
    part: FeatureGroup,
    fit: FeatureGroup,
) -> None:
    """Adds statistics of histories, and how well the target item fits to them.

    Args:
        features: to add to.
        found: statistics, known or predicted.
        sequences: of the same rows.
        part: group of the statistics.
        fit: group of what the target item's id takes part in.
    """
    for column_R in found.values_RT.T:
        features.add(part, column_R)
    for column_R in _fits(found, sequences):
        features.add(fit, column_R)


def filled(features: Features, found: Statistics, sequences: list[Sequence]) -> Features:
    """Returns the features with other histories, in which no entry is the target item.

    Args:
        features: with histories, as of :func:`add_statistics` and then :func:`add_matches`.
        found: statistics of the other histories.
        sequences: of the same rows.
    """
    return features.with_histories([*found.values_RT.T, *_fits(found, sequences)])


def mean_statistics(known: Statistics, rows: Rows) -> Statistics:
    """Returns the mean statistics of the training users' histories, in every row.

    Args:
        known: statistics of the real histories.
        rows: training and test rows.
    """
    mean_T = known.values_RT[last_rows(rows, rows.num_behaviours_R > 0)].mean(axis=0)
    values_RT = np.broadcast_to(mean_T, known.values_RT.shape)
    return Statistics(known.names, values_RT, known.scales_T, known.num_factors)


def _fits(found: Statistics, sequences: list[Sequence]) -> Iterator[Floats]:
    """Yields product and cosine [R] of the factors of a history and of the target item."""
    for sequence in sequences:
        target_RK = sequence.factors_IK[sequence.target_R]
        history_RK = found.factors(sequence.name)
        products_R = np.einsum("rk,rk->r", history_RK, target_RK)
        lengths_R = np.linalg.norm(history_RK, axis=1) * np.linalg.norm(target_RK, axis=1)
        yield products_R
        yield products_R / np.maximum(lengths_R, 1e-9)


def add_matches(features: Features, sequences: list[Sequence], rows: Rows) -> None:
    """Adds how often a history has the target item, and a part of it such as its category."""
    for sequence in sequences:
        features.add(FeatureGroup.HISTORY_ITEM, sequence.matches_R)
        for aligned in rows.schema.actions_of(sequence.name):
            if aligned in rows.schema.lists and (target := _target(rows.schema, aligned)):
                values_V = rows.rows.lists[aligned].values
                if len(values_V) != len(sequence.rows_V):
                    continue
                ids_R = rows.rows.scalars_CR[rows.schema.scalars.index(target)]
                matches_V = values_V == ids_R[sequence.rows_V]
                counts_R = np.bincount(
                    sequence.rows_V, matches_V, minlength=len(sequence.lengths_R)
                )
                features.add(FeatureGroup.HISTORY, counts_R / np.maximum(sequence.lengths_R, 1))


def _target(schema: Schema, aligned: str) -> str | None:
    return next(iter(schema.targets_of(aligned)), None)
