"""Permutation of features among rows, for permutation importance (Breiman 2001).

Shape: ``R`` rows of a chunk.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.schema.schema import Group, Schema


@dataclass(frozen=True)
class FeaturePermutation:
    """Gives each row of a chunk the values that another one of its rows has of some columns.

    The columns are permuted together, so that aligned lists stay aligned. A row gets the values of
    a row of its own cohort that is as cold as itself: no user with a history is shown without one.
    """

    columns: tuple[str, ...]
    """Columns of the schema."""
    seed: tuple[int, ...]
    """Seed of the random order, together with the place of the chunk."""

    def __call__(self, chunk: Chunk, schema: Schema, place: tuple[int, ...]) -> Chunk:
        """Permutes the columns.

        Args:
            chunk: R rows.
            schema: all columns.
            place: of the chunk, such as the rank and the first step.
        """
        order_R = self._order(chunk, place)
        lists, scalars_CR = dict(chunk.lists), chunk.scalars_CR.copy()
        numeric_RN, numeric = chunk.numeric_RN.copy(), schema.numeric()
        vectors = dict(chunk.vectors)
        for name in self.columns:
            if name in lists:
                lists[name] = lists[name].take(order_R)
            elif name in schema.scalars:
                row = schema.scalars.index(name)
                scalars_CR[row] = scalars_CR[row, order_R]
            elif name in vectors:
                vectors[name] = vectors[name][order_R]
            else:
                column = numeric.index(name)
                numeric_RN[:, column] = numeric_RN[order_R, column]
        changed: dict[str, Any] = {"lists": lists, "scalars_CR": scalars_CR, "vectors": vectors}
        return replace(chunk, numeric_RN=numeric_RN, **changed)

    def _order(self, chunk: Chunk, place: tuple[int, ...]) -> Ints:
        random = np.random.default_rng([*self.seed, *place])
        kinds_R = 2 * chunk.is_new_R.astype(np.int64) + chunk.is_cold_R
        if chunk.items is not None:
            kinds_R += 8 * chunk.items.is_new_R + 4 * chunk.items.is_cold_R
        order_R = np.arange(len(chunk))
        for kind in range(4 if chunk.items is None else 16):
            rows = np.flatnonzero(kinds_R == kind)
            order_R[rows] = random.permutation(rows)
        return order_R


def feature_groups(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Groups the features that are permuted together: a sequence with its actions, others alone.

    A list goes with its weights. Positions are constants where features are permuted.
    """
    groups: dict[str, list[str]] = {}
    lists = {weights: name for name, weights in schema.list_weights.items()}
    features = {*schema.id_columns, *schema.numeric(), *schema.vectors(), *lists}
    features -= {*schema.names(Group.POSITION)}
    for name, column in schema.columns.items():
        if name in features:
            groups.setdefault(column.action_of or lists.get(name, name), []).append(name)
    return {name: tuple(columns) for name, columns in groups.items()}
