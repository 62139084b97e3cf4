"""Embedding collections of a schema: pooled and unpooled tables with their stored sizes."""

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from mail_torchrec.data.schema.columns import EmbeddingTableSettings
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Schema

_RESERVED = frozenset(dir(nn.ModuleDict()))
# Table names hold no slash.
_ESCAPE = "/"
# FBGEMM's kernels move vectors of 4 columns.
_COLUMN_MULTIPLE = 4
# Row-wise shards of a table with more than (ranks - 1)^2 rows are never empty: this minimum is
# enough for 32 ranks, and empty_shards.py handles more.
_LEAST_ROWS = 1024


def collection_key(table: str) -> str:
    """Returns the name that a table has in TorchRec's collections, plans and state dicts.

    The collections keep tables in an ``nn.ModuleDict``, which refuses its own attributes
    (``items``, ``type``, ``train``, ...) as keys; a table of such a name gets a slash behind it.
    """
    return table + _ESCAPE if table in _RESERVED else table


def table_of_key(key: str) -> str:
    """Returns the name of the table that has a key in TorchRec's collections."""
    return key.removesuffix(_ESCAPE)


def stored_dim(dim: int) -> int:
    """Rounds a table's number of columns up to a multiple of 4.

    The columns from ``dim`` on are never read nor trained.
    """
    return -(-dim // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE


def table_sizes(
    schema: Schema, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Returns the stored rows and columns of every table, output tables included.

    A first-order weight is one column behind the vector: it needs no lookup of its own and moves
    with its row under every plan. It counts in the mean squared gradient that a row-wise optimizer
    keeps of a row.

    Args:
        schema: columns and tables.
        feature_tables: tables by feature key.
        num_rows: rows that the encoders use, by table name; stored rows behind them are never read.
    """
    schema = schema.with_dims(num_rows)
    column_of = {schema.table_of(name): name for name in schema.id_columns}
    matched = map(schema.match_column, feature_tables.match)
    column_of |= {output_table(schema.table_of(name)): name for name in matched}
    rows = {
        table: max(num_rows[schema.table_of(name)], _LEAST_ROWS)
        for table, name in column_of.items()
    }
    dims = {
        table: stored_dim(schema.table_dim(name) + (table in feature_tables.first_order))
        for table, name in column_of.items()
    }
    # All tables of an EmbeddingCollection need the same width.
    unpooled = set(feature_tables.unpooled.values())
    widest = max(dims[table] for table in unpooled)
    return {
        table: (rows[table], widest if table in unpooled else dims[table]) for table in column_of
    }


def build_tables(
    schema: Schema, feature_tables: FeatureTables, num_rows: dict[str, int], device: torch.device
) -> tuple[EmbeddingBagCollection, EmbeddingCollection]:
    """Builds the pooled and the unpooled collection.

    Attributes, context and item fields are pooled; behaviours, target items and the output tables
    (V' of DMR) are not. Lists are pooled by their sum, which ``model/lookup.py`` divides by their
    length; weighted lists by that of their entries times their shares.

    Args:
        schema: columns and tables.
        feature_tables: tables by feature key.
        num_rows: rows that the encoders use, by table name.
        device: ``meta`` for tables that will be sharded.
    """
    sizes = table_sizes(schema, feature_tables, num_rows)
    pooled = [
        EmbeddingBagConfig(
            num_embeddings=rows,
            embedding_dim=dim,
            name=collection_key(table),
            feature_names=_feature_names(feature_tables.pooled, table),
            pooling=PoolingType.SUM,
        )
        for table, (rows, dim) in sizes.items()
        if table in feature_tables.pooled.values()
    ]
    unpooled = [
        EmbeddingConfig(
            num_embeddings=rows,
            embedding_dim=dim,
            name=collection_key(table),
            feature_names=_feature_names(feature_tables.unpooled, table),
        )
        for table, (rows, dim) in sizes.items()
        if table in feature_tables.unpooled.values()
    ]
    return (
        EmbeddingBagCollection(tables=pooled, device=device, is_weighted=bool(schema.list_weights)),
        EmbeddingCollection(tables=unpooled, device=device),
    )


def table_settings(schema: Schema, table: str) -> EmbeddingTableSettings:
    """Returns a table's settings; an output table has those of its item table."""
    item_tables = {output_table(name): name for name in schema.sequence_tables}
    return schema.table(table if table in schema.table_names else item_tables[table])


def _feature_names(feature_tables: dict[str, str], table: str) -> list[str]:
    return [key for key, key_table in feature_tables.items() if key_table == table]
