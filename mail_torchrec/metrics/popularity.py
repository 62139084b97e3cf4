"""Click rates of the training rows, of all and of each item: constants that a model should beat.

Shapes: ``R`` rows, ``K`` keys (hashes of items).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.parquet.arrow import binary
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.data.weights.row_weights import row_weights
from mail_torchrec.distributed.collectives import gather_objects, rank, world_size
from mail_torchrec.metrics.exchange import exchange_by_key, return_to_rank
from mail_torchrec.metrics.row_columns import read_rows

PRIOR_ROWS = 20
"""Rows with the click rate of all training rows that each item's rows are smoothed by."""
_MAX_PARTS = 64
_COUNTS = [("key", np.int64), ("rows", np.float64), ("clicks", np.float64)]


class ClickCounts(NamedTuple):
    """Clicks of the training rows, over all ranks; a row counts its weight."""

    rows: float
    clicks: float
    of_items: NDArray[Any]
    """Structured, ``key``, ``rows`` and ``clicks`` of the items that are dealt to this rank, [K],
    keys rising; empty without an item column."""

    @property
    def rate(self) -> float:
        """Click rate of all rows."""
        return self.clicks / self.rows

    def smoothed_rates(self, keys_R: NDArray[np.int64]) -> NDArray[np.float64]:
        """Computes the smoothed click rate of each row's item, [R]; every rank calls it.

        It is ``(clicks + PRIOR_ROWS * rate) / (rows + PRIOR_ROWS)``.

        Args:
            keys_R: hash of the item.
        """
        keys_K, places_R = np.unique(keys_R, return_inverse=True)
        asked = np.zeros(len(keys_K), [*_COUNTS, ("rank", np.int64)])
        asked["key"], asked["rank"] = keys_K, rank()
        asked = exchange_by_key(asked)
        found = np.searchsorted(self.of_items["key"], asked["key"])
        is_known = np.append(self.of_items["key"], 0)[found] == asked["key"]
        is_known &= found < len(self.of_items)
        for name in ("rows", "clicks"):
            asked[name][is_known] = self.of_items[name][found[is_known]]
        answers = return_to_rank(asked)
        answers = answers[np.argsort(answers["key"])]
        rates_K = (answers["clicks"] + PRIOR_ROWS * self.rate) / (answers["rows"] + PRIOR_ROWS)
        rates_R: NDArray[np.float64] = rates_K[places_R]
        return rates_R


def count_clicks(source: Source, schema: Schema, item: str | None) -> ClickCounts:
    """Counts the clicks of all rows and of each item; every rank reads its part of the row groups.

    Args:
        source: training rows.
        schema: of its columns.
        item: column of the item, or None.

    Raises:
        ValueError: a file cannot be read any more.
    """
    label = schema.file_column(schema.label)
    names = [name for name in (schema.label, schema.weight, item) if name is not None]
    columns = list(dict.fromkeys(map(schema.file_column, names)))
    totals, parts = np.zeros(2), [np.empty(0, _COUNTS)]
    for group in source.row_groups[rank() :: world_size()]:
        table, file = source.read(group, columns), source.file(group)
        labels_R = binary(table[label], file=file, name=label)
        weights_R = row_weights(table, schema, file).astype(np.float64)
        totals += weights_R.sum(), weights_R[labels_R].sum()
        if item is not None:
            parts.append(_counts(_keys(table, schema, item, file), labels_R, weights_R))
        if len(parts) > _MAX_PARTS:
            parts = [_merged(parts)]
    rows, clicks = (sum(counts) for counts in zip(*gather_objects(totals.tolist()), strict=True))
    return ClickCounts(rows, clicks, _merged([exchange_by_key(_merged(parts))]))


def item_keys(
    source: Source, schema: Schema, item: str, rows: Sequence[range]
) -> NDArray[np.int64]:
    """Reads the items of numbered rows as the keys of :class:`ClickCounts`, [R].

    Args:
        source: of the rows.
        schema: of its columns.
        item: column of the item.
        rows: their numbers, from 0 in the order of the files.

    Raises:
        ValueError: a file cannot be read any more.
    """

    def read(group: RowGroup) -> Any:
        table = source.read(group, [schema.file_column(item)])
        return pa.array(_keys(table, schema, item, source.file(group)))

    keys_R: NDArray[np.int64] = read_rows(source, rows, read).to_numpy()
    return keys_R


def _keys(table: pa.Table, schema: Schema, item: str, file: str) -> NDArray[np.int64]:
    column = schema.file_column(item)
    return hash64(plain_ids(table[column], file=file, name=column), "item").view(np.int64)


def _counts(
    keys_R: NDArray[np.int64], labels_R: NDArray[Any], weights_R: NDArray[Any]
) -> NDArray[Any]:
    """Counts rows and clicks by key, [K]."""
    counts_R = np.empty(len(keys_R), _COUNTS)
    counts_R["key"], counts_R["rows"] = keys_R, weights_R
    counts_R["clicks"] = weights_R * labels_R
    return _merged([counts_R])


def _merged(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Adds up the counts of each key, keys rising, [K]."""
    counts = np.concatenate(parts)
    keys_K, places = np.unique(counts["key"], return_inverse=True)
    merged_K = np.zeros(len(keys_K), _COUNTS)
    merged_K["key"] = keys_K
    for name in ("rows", "clicks"):
        np.add.at(merged_K[name], places, counts[name])
    return merged_K
