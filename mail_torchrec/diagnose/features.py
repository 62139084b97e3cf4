"""Inputs of the trees by group: users' attributes, context, items, content, histories.

Shapes: ``R`` rows, ``F`` features, ``V`` values of a list column end to end, ``E`` elements.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.diagnose.sampled_rows import target_item

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FOLDS = 5
_FEW_IDS = 16
"""Ids that are categories of the trees; rarer ones share one. With 200 a column trees learn the
training users by heart, whose attributes name them, and score other users worse."""
_MANY_IDS = 200
"""Ids, up to which a column of attributes does not name users."""
_PRIOR_ROWS = 20.0
_CONTENT_DIM = 24
_MOST_USERS_SHARE = 0.5
"""Ids a user, above which a column names users and is left out."""


class FeatureGroup(StrEnum):
    """Groups of features, which models are given or not."""

    CONTEXT = "context"
    ATTRIBUTES = "attributes"
    ITEM_ID = "item's id"
    ITEM = "item's other columns"
    CONTENT = "content vectors"
    HISTORY = "histories"
    PREDICTED = "predicted histories"
    HISTORY_ITEM = "histories and the target item"
    PREDICTED_ITEM = "predicted histories and the target item"


HISTORY_PARTS = (FeatureGroup.HISTORY, FeatureGroup.HISTORY_ITEM)


@dataclass
class Features:
    """Features of training and test rows, in groups.

    Args:
        num_train: training rows; the rows of a feature are these, then those of test.
    """

    num_train: int
    columns: list[Floats] = field(default_factory=list)
    """[R] each, training rows first."""
    parts: list[FeatureGroup] = field(default_factory=list)
    is_category: list[bool] = field(default_factory=list)

    def add(
        self, part: FeatureGroup, values_R: npt.NDArray[np.generic], *, category: bool = False
    ) -> None:
        """Adds a feature [R] of training rows, then of test rows."""
        self.columns.append(values_R.astype(np.float32))
        self.parts.append(part)
        self.is_category.append(category)

    def select(
        self, parts: Collection[FeatureGroup]
    ) -> tuple[Floats, list[bool], list[FeatureGroup]]:
        """Returns the features [R, F] of some groups, which are categories, and their groups."""
        chosen = [index for index, part in enumerate(self.parts) if part in parts]
        stacked_RF = (
            np.stack([self.columns[index] for index in chosen], axis=1)
            if chosen
            else np.zeros((len(self.columns[0]) if self.columns else 0, 1))
        )
        return (
            stacked_RF,
            [self.is_category[index] for index in chosen],
            [self.parts[index] for index in chosen],
        )

    def emptied(self, is_empty_R: Bools) -> "Features":
        """Returns the features with no history in some rows, [R]; their statistics are 0 then."""
        columns = [
            np.where(is_empty_R, 0, column_R) if part in HISTORY_PARTS else column_R
            for column_R, part in zip(self.columns, self.parts, strict=True)
        ]
        return Features(self.num_train, columns, self.parts, self.is_category)

    def with_histories(self, columns: Iterable[Floats]) -> "Features":
        """Returns the features with other histories; what is not given of these is 0.

        Args:
            columns: leading features of histories [R], in their order.
        """
        given, zeros_R = iter(columns), np.zeros(len(self.columns[0]))
        replaced = [
            next(given, zeros_R) if part in HISTORY_PARTS else column_R
            for column_R, part in zip(self.columns, self.parts, strict=True)
        ]
        return Features(self.num_train, replaced, self.parts, self.is_category)

    def has(self, part: FeatureGroup) -> bool:
        """Returns whether a group has features."""
        return part in self.parts


@dataclass(frozen=True)
class Rows:
    """Training rows that trees are fitted on, and test rows, one behind the other.

    Args:
        schema: columns.
        rows: training rows, then test rows.
        num_train: training rows.
    """

    schema: Schema
    rows: Chunk
    num_train: int

    @property
    def labels_R(self) -> npt.NDArray[np.bool_]:
        """Labels of training rows, [R]."""
        return self.rows.labels_R[: self.num_train]

    @property
    def folds_R(self) -> Ints:
        """Fold of each training row's user, [R]."""
        folds_R: Ints = (self.rows.users_R[: self.num_train].view(np.uint64) % FOLDS).astype(
            np.int64
        )
        return folds_R

    @property
    def num_behaviours_R(self) -> Ints:
        """Entries of all behaviour sequences, [R]."""
        lengths = [self.rows.lists[name].lengths for name in self.schema.sequences]
        num_R: Ints = np.sum(lengths, axis=0, dtype=np.int64)
        return num_R

    def scalar(self, name: str) -> Ints:
        """Returns a column of ids [R], numbered without gaps."""
        ids_R = self.rows.scalars_CR[self.schema.scalars.index(name)]
        return np.unique(ids_R, return_inverse=True)[1].astype(np.int64)


def add_columns(features: Features, rows: Rows, item: str | None = None) -> list[str]:
    """Adds the features of all columns but histories and content vectors of items.

    Args:
        features: to add to.
        rows: training and test rows.
        item: column of the candidate item's id, beside the target of the first history.

    Returns:
        The columns that were left out, for they name users.
    """
    schema, left_out = rows.schema, []
    items = {target_item(schema), item}
    for group, part in (
        (Group.ATTRIBUTE, FeatureGroup.ATTRIBUTES),
        (Group.CONTEXT, FeatureGroup.CONTEXT),
        (Group.ITEM, FeatureGroup.ITEM),
    ):
        for name in schema.names(group):
            if name in schema.scalars:
                ids_R = rows.scalar(name)
                if part is FeatureGroup.ATTRIBUTES and _names_users(ids_R, rows):
                    left_out.append(name)
                    continue
                _add_ids(features, FeatureGroup.ITEM_ID if name in items else part, ids_R, rows)
            elif name in schema.lists:
                _add_list(features, part, name, rows)
        for name in schema.numeric(group):
            values_R = rows.rows.numeric_RN[:, schema.numeric().index(name)]
            features.add(part, values_R)
        for name in schema.vectors(group):
            content = FeatureGroup.CONTENT if group is Group.ITEM else part
            add_vectors(features, content, rows.rows.vectors[name], rows.num_train)
    return left_out


def add_vectors(
    features: Features, part: FeatureGroup, vectors_RE: npt.NDArray[np.float32], num_train: int
) -> None:
    """Adds the leading principal components of vectors [R, E]."""
    dim = min(_CONTENT_DIM, vectors_RE.shape[1], num_train)
    fitted = PCA(dim, svd_solver="randomized", random_state=0).fit(vectors_RE[:num_train])
    for component_R in fitted.transform(vectors_RE).T:
        features.add(part, component_R)


def _names_users(ids_R: Ints, rows: Rows) -> bool:
    """Returns whether a column of attributes has nearly as many ids as there are users."""
    train = slice(0, rows.num_train)
    num_users = len(np.unique(rows.rows.users_R[train]))
    return len(np.unique(ids_R[train])) > max(_MANY_IDS, _MOST_USERS_SHARE * num_users)


def _add_ids(features: Features, part: FeatureGroup, ids_R: Ints, rows: Rows) -> None:
    """Adds a column of ids: its frequent ids as categories; of many also rates and counts."""
    num_ids = int(ids_R.max()) + 1
    counts = np.bincount(ids_R[: rows.num_train], minlength=num_ids)
    ranks = np.argsort(np.argsort(-counts, kind="stable"))
    features.add(part, np.minimum(ranks, _FEW_IDS - 1)[ids_R], category=True)
    if num_ids <= _FEW_IDS:
        return
    rates = click_rates(ids_R[: rows.num_train], np.arange(rows.num_train), num_ids, rows)
    features.add(part, np.concatenate([rates[0], rates[1][ids_R[rows.num_train :]]]))
    features.add(part, np.log1p(counts)[ids_R])


def _add_list(features: Features, part: FeatureGroup, name: str, rows: Rows) -> None:
    """Adds the length of a list, and the mean rate of its entries."""
    jagged = rows.rows.lists[name]
    lengths_R, values_V = jagged.lengths, jagged.values
    features.add(part, lengths_R)
    if not len(values_V):
        return
    ids_V = np.unique(values_V, return_inverse=True)[1]
    rows_V = np.repeat(np.arange(len(lengths_R)), lengths_R)
    is_train_V = rows_V < rows.num_train
    num_ids = int(ids_V.max()) + 1
    rates_V, rates = click_rates(ids_V[is_train_V], rows_V[is_train_V], num_ids, rows)
    all_V = np.concatenate([rates_V, rates[ids_V[~is_train_V]]])
    sums_R = np.bincount(rows_V, all_V, minlength=len(lengths_R))
    features.add(part, np.where(lengths_R > 0, sums_R / np.maximum(lengths_R, 1), np.nan))


def click_rates(ids_V: Ints, rows_V: Ints, num_ids: int, rows: Rows) -> tuple[Floats, Floats]:
    """Computes smoothed rates of clicks, those of training rows from the other users' folds.

    Args:
        ids_V: ids of training rows, [V].
        rows_V: the row of each, [V].
        num_ids: ids are below it.
        rows: training rows.

    Returns:
        The rate of each of ``ids_V`` [V], and of each id by all training rows, [ids].
    """
    labels_V, folds_V = rows.labels_R[rows_V].astype(np.float64), rows.folds_R[rows_V]
    prior = float(rows.labels_R.mean())

    def rates(chosen_V: npt.NDArray[np.bool_] | slice) -> Floats:
        clicks = np.bincount(ids_V[chosen_V], labels_V[chosen_V], minlength=num_ids)
        counts = np.bincount(ids_V[chosen_V], minlength=num_ids)
        smoothed: Floats = (clicks + _PRIOR_ROWS * prior) / (counts + _PRIOR_ROWS)
        return smoothed

    of_rows_V = np.empty(len(ids_V))
    for fold in range(FOLDS):
        of_rows_V[folds_V == fold] = rates(folds_V != fold)[ids_V[folds_V == fold]]
    return of_rows_V, rates(slice(None))


def concatenated(train: Chunk, test: Chunk, schema: Schema) -> Rows:
    """Joins training rows and test rows."""
    return Rows(schema, Chunk.concatenate([train, test]), len(train))
