"""Schema -> table collections on the meta device."""

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Schema, Table

# FBGEMM's kernels move vectors of 4 columns.
_COLUMN_MULTIPLE = 4


def stored_dim(dim: int) -> int:
    """Stored columns of a table that needs ``dim``: the next multiple of 4. The columns behind ``dim`` are never read nor trained."""
    return -(-dim // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE


# Row-wise shards of a table with more than (ranks - 1)^2 rows are never empty: this is enough for
# 32 ranks, and more see few_rows.py.
_LEAST_ROWS = 1024


def table_sizes(
    schema: Schema, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Stored rows and columns of every table, output-side twins included; rows behind those of the encoder are never read.

    A first-order weight is one column behind the vector: it costs no lookup of its own, and moves
    with its row under every plan. A row-wise optimizer counts its gradient into the row's.
    """
    column_of = {schema.table_of(name): name for name in schema.id_columns}
    column_of |= {output_table(schema.table_of(name)): name for name in feature_tables.match}
    rows = {
        table: max(num_rows[schema.table_of(name)], _LEAST_ROWS)
        for table, name in column_of.items()
    }
    dims = {
        table: stored_dim(schema.table_dim(name) + (table in feature_tables.first_order))
        for table, name in column_of.items()
    }
    # An EmbeddingCollection wants one width of all its tables.
    unpooled = set(feature_tables.unpooled.values())
    widest = max(dims[table] for table in unpooled)
    return {
        table: (rows[table], widest if table in unpooled else dims[table]) for table in column_of
    }


def build_tables(
    schema: Schema, feature_tables: FeatureTables, num_rows: dict[str, int], device: torch.device
) -> tuple[EmbeddingBagCollection, EmbeddingCollection]:
    """The pooled tables (attributes, context, item fields) and the unpooled ones (behaviours, target items, V').

    Pooled lists come as sums; ``model/features.py`` makes means of them.
    """
    sizes = table_sizes(schema, feature_tables, num_rows)
    pooled = [
        EmbeddingBagConfig(
            num_embeddings=rows,
            embedding_dim=dim,
            name=table,
            feature_names=_keys(feature_tables.pooled, table),
            pooling=PoolingType.SUM,
        )
        for table, (rows, dim) in sizes.items()
        if table in feature_tables.pooled.values()
    ]
    unpooled = [
        EmbeddingConfig(
            num_embeddings=rows,
            embedding_dim=dim,
            name=table,
            feature_names=_keys(feature_tables.unpooled, table),
        )
        for table, (rows, dim) in sizes.items()
        if table in feature_tables.unpooled.values()
    ]
    return EmbeddingBagCollection(tables=pooled, device=device), EmbeddingCollection(
        tables=unpooled, device=device
    )


def mean_lengths(
    schema: Schema,
    feature_tables: FeatureTables,
    known: dict[str, float],
    *,
    batch_size: int,
    num_negatives: int,
) -> dict[str, list[float]]:
    """Table -> the ids a row of the batch that each key looks up, in the order of the table's keys.

    Args:
        schema: columns.
        feature_tables: keys.
        known: list column -> its mean length; a list that is not among them counts as full.
        batch_size: rows a rank.
        num_negatives: of the match loss, drawn once a batch.

    Raises:
        ValueError: a known length is of no list column, or not between 0 and its max_length.
    """
    for name, length in known.items():
        if name not in schema.lists:
            raise ValueError(
                f"sharding.lengths: no list column is called '{name}'; the lists are "
                f"{', '.join(schema.lists) or 'none'}"
            )
        if not 0 <= length <= schema.columns[name].max_length:
            raise ValueError(
                f"sharding.lengths.{name} should lie between 0 and its max_length, "
                f"{schema.columns[name].max_length}, received {length}"
            )
    of_key = {
        name: float(known.get(name, schema.columns[name].max_length)) for name in schema.lists
    }
    of_key |= {keys.negatives: num_negatives / batch_size for keys in feature_tables.match.values()}
    lengths: dict[str, list[float]] = {}
    for key, table in (feature_tables.pooled | feature_tables.unpooled).items():
        lengths.setdefault(table, []).append(of_key.get(key, 1.0))
    return lengths


def table_settings(schema: Schema, table: str) -> Table:
    """A table's settings; a twin has those of its item table."""
    twins = {output_table(name): name for name in schema.sequence_tables}
    return schema.table(table if table in schema.table_names else twins[table])


def _keys(feature_tables: dict[str, str], table: str) -> list[str]:
    return [key for key, looked_up in feature_tables.items() if looked_up == table]
