"""Embedding tables cut to the rows that one batch looks up.

The trainer's model runs over them where whole tables would not fit into memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import build_tables, table_of_key, table_sizes
from mail_torchrec.model.mail import Mail, Towers


@dataclass
class CompactTables:
    """Rows of each table that a batch looks up, in ascending order.

    Args:
        schema: columns and tables.
        feature_tables: feature keys of a batch and their tables.
        num_rows: number of rows of each table.
        batch: batch whose rows are kept.
    """

    schema: Schema
    feature_tables: FeatureTables
    num_rows: dict[str, int]
    batch: Batch
    rows: dict[str, Ints] = field(init=False)
    """Kept rows [kept] of each table. Action tables keep all: a tower has embeddings of its own,
    looked up by the action's row."""
    weights: dict[str, Tensor] = field(init=False)
    """Stored weights [kept, columns] of each table, output-side tables included."""

    def __post_init__(self) -> None:
        self.rows = {name: self._kept_rows(name) for name in self.num_rows}
        sizes = table_sizes(self.schema, self.feature_tables, self._counts())
        self.weights = {name: torch.zeros(size) for name, size in sizes.items()}

    def copy_shard(self, table: str, shard: Tensor, first_row: int, first_column: int) -> None:
        """Copies the kept rows of a shard of a table.

        Args:
            table: name of the table.
            shard: [rows, columns] of the whole table.
            first_row: row of the table at which the shard begins.
            first_column: column of the table at which it begins.
        """
        rows = self.rows[self._schema_table(table)]
        kept = np.flatnonzero((rows >= first_row) & (rows < first_row + len(shard)))
        columns = slice(first_column, first_column + shard.shape[1])
        source_rows = torch.from_numpy(rows[kept] - first_row)
        self.weights[table][torch.from_numpy(kept), columns] = shard[source_rows].float()

    @torch.no_grad()
    def model(self, towers: Towers) -> tuple[Mail, Batch]:
        """Builds the trainer's model over the kept rows, unsharded.

        Returns:
            The model in evaluation mode, and the batch with its ids remapped to the kept rows.
        """
        tables = build_tables(self.schema, self.feature_tables, self._counts(), torch.device("cpu"))
        model = Mail(*tables, towers)
        for collection in (model.pooled_tables, model.unpooled_tables):
            for key, parameter in collection.named_parameters():
                parameter.copy_(self.weights[table_of_key(key.split(".")[1])])
        pooled, unpooled = (self._remapped(jagged, tables) for jagged, tables in self._jagged())
        return model.eval(), replace(self.batch, pooled=pooled, unpooled=unpooled)

    def _kept_rows(self, table: str) -> Ints:
        schema = self.schema
        actions = [action for name in schema.sequences if (action := schema.action_of(name))]
        if table in map(schema.table_of, actions):
            return np.arange(self.num_rows[table])
        ids = [
            _ids(jagged, key)
            for jagged, tables in self._jagged()
            for key, name in tables.items()
            if name in (table, output_table(table))
        ]
        return np.unique(np.concatenate(ids))

    def _jagged(self) -> list[tuple[KeyedJaggedTensor, dict[str, str]]]:
        """Pairs the ids of the batch with the table of each key."""
        return [
            (self.batch.pooled, self.feature_tables.pooled),
            (self.batch.unpooled, self.feature_tables.unpooled),
        ]

    def _counts(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def _schema_table(self, table: str) -> str:
        """Finds the schema's table of a table that may be an output-side one."""
        if table in self.rows:
            return table
        return next(name for name in self.rows if output_table(name) == table)

    def _remapped(self, jagged: KeyedJaggedTensor, tables: Mapping[str, str]) -> KeyedJaggedTensor:
        keys = list(jagged.keys())
        values = []
        for key in keys:
            rows = self.rows[self._schema_table(tables[key])]
            values.append(torch.from_numpy(np.searchsorted(rows, _ids(jagged, key))))
        weights = jagged.weights_or_none()
        return KeyedJaggedTensor(keys, torch.cat(values), weights, lengths=jagged.lengths())


def copied_to(parts: Sequence[CompactTables]) -> Callable[[str, Tensor, int, int], None]:
    """Returns a function that copies a shard's rows to each of several compact tables."""

    def copy(table: str, shard: Tensor, first_row: int, first_column: int) -> None:
        for part in parts:
            part.copy_shard(table, shard, first_row, first_column)

    return copy


def _ids(jagged: KeyedJaggedTensor, key: str) -> Ints:
    ids: Ints = jagged[key].values().numpy()
    return ids
