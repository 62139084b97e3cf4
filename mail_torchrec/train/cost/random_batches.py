"""Batches of random rows, whose shapes are those of a configuration's batches.

Shapes: ``B`` rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch, MatchIds, RowSets
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.towers.registry import tower_settings


@dataclass(frozen=True)
class RandomIds:
    """Ids that random rows have."""

    num_rows: Mapping[str, int]
    """Table -> rows, all of which are equally likely."""
    mean_lengths: Mapping[str, float] = field(default_factory=dict)
    """List column -> ids a row; a list that is not named is full."""


def num_negatives(config: Config) -> int:
    """Returns the number of negatives that a batch's match loss draws; 0 without a match loss."""
    settings = tower_settings(config.model.tower, config.model.tower_options)
    return int(getattr(settings, "num_negatives", 0))


def random_batch(
    config: Config,
    feature_tables: FeatureTables,
    num_rows: int,
    ids: RandomIds,
    vector_dims: Mapping[str, int],
) -> Batch:
    """Draws rows of warm users from the global random generator, two rows a user.

    Args:
        config: model and schema.
        feature_tables: tables by feature key.
        num_rows: B.
        ids: tables and lengths.
        vector_dims: number of elements of each vector column.
    """
    schema, drawn = config.schema_, num_negatives(config)
    negatives = {keys.negatives for keys in feature_tables.match.values()}

    def jagged(tables: dict[str, str], *, is_weighted: bool = False) -> KeyedJaggedTensor:
        lengths = [
            _spread(drawn, num_rows) if key in negatives else _lengths(key, schema, num_rows, ids)
            for key in tables
        ]
        return _jagged(tables, lengths, ids.num_rows, is_weighted=is_weighted)

    ones, none = torch.ones(num_rows), torch.zeros(num_rows, dtype=torch.bool)
    match_ids = MatchIds(
        torch.ones(num_rows, dtype=torch.int64),
        torch.ones(drawn, dtype=torch.int64),
        -ones,
        -torch.ones(drawn),
    )
    return Batch(
        pooled=jagged(feature_tables.pooled, is_weighted=bool(schema.list_weights)),
        unpooled=jagged(feature_tables.unpooled),
        numeric_BN=torch.randn(num_rows, len(schema.numeric())),
        labels_B=(torch.arange(num_rows) % 2).float(),
        conversions_B=torch.zeros(num_rows),
        weights_B=ones,
        users_B=torch.arange(num_rows) // 2,
        is_cold_B=none,
        is_new_B=none,
        match=dict.fromkeys(feature_tables.match, match_ids),
        counts=torch.zeros(1, dtype=torch.int64),
        sets=RowSets.of(none, ones),
        vectors={name: torch.randn(num_rows, dim) for name, dim in vector_dims.items()},
        task_labels=dict.fromkeys(schema.names(Group.TASK_LABEL), ones),
        is_new_item_B=none,
        is_cold_item_B=none,
        item_frequency_B=ones,
    )


def _jagged(
    tables: Mapping[str, str],
    lengths: list[Tensor],
    num_rows: Mapping[str, int],
    *,
    is_weighted: bool,
) -> KeyedJaggedTensor:
    """Draws the ids of some features, by the lengths [B] of each."""
    numbers = [int(of_key.sum()) for of_key in lengths]
    values = torch.cat(
        [
            torch.randint(0, _rows_of(table, num_rows), (number,))
            for table, number in zip(tables.values(), numbers, strict=True)
        ]
    )
    weights = torch.ones(len(values)) if is_weighted else None
    return KeyedJaggedTensor(
        list(tables), values, weights, lengths=torch.cat(lengths), length_per_key=numbers
    )


def _rows_of(table: str, num_rows: Mapping[str, int]) -> int:
    """Returns the rows of a table; an output-side table has those of its items."""
    return num_rows.get(table) or {output_table(name): num_rows[name] for name in num_rows}[table]


def _lengths(key: str, schema: Schema, num_rows: int, ids: RandomIds) -> Tensor:
    """Returns the lengths [num_rows] of lists, or of one id a row."""
    if key not in schema.lists:
        return torch.ones(num_rows, dtype=torch.int64)
    mean = ids.mean_lengths.get(key, schema.columns[key].max_length)
    return _spread(round(mean * num_rows), num_rows)


def _spread(total: int, num_rows: int) -> Tensor:
    """Returns lengths [num_rows] that sum to ``total``, as the reader spreads negatives."""
    return torch.tensor([total // num_rows + (row < total % num_rows) for row in range(num_rows)])
