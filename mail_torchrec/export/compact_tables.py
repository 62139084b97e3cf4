"""A batch beside tables that hold its rows alone: the trainer's model where whole tables would not fit into memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import build_tables, table_sizes
from mail_torchrec.model.mail import Mail, Towers


@dataclass
class CompactTables:
    """The rows of each table that a batch looks up, in the order of their numbers.

    Args:
        schema: columns and tables.
        feature_tables: which keys look up which tables.
        num_rows: table -> rows.
        batch: whose rows are meant.
    """

    schema: Schema
    feature_tables: FeatureTables
    num_rows: dict[str, int]
    batch: Batch
    rows: dict[str, Ints] = field(init=False)
    """Table -> the rows that are kept. Action tables keep all: a tower has embeddings of its own by
    the action's row."""
    weights: dict[str, Tensor] = field(init=False)
    """Table, output-side twins included -> the rows' weights as they are stored."""

    def __post_init__(self) -> None:
        actions = {
            self.schema.table_of(action)
            for name in self.schema.sequences
            if (action := self.schema.action_of(name))
        }
        self.rows = {}
        for name, num_rows in self.num_rows.items():
            same = {name, output_table(name)}
            found = [
                _ids(jagged, key)
                for jagged, tables in self._jagged()
                for key, table in tables.items()
                if table in same
            ]
            self.rows[name] = (
                np.arange(num_rows) if name in actions else np.unique(np.concatenate(found))
            )
        self.weights = {
            name: torch.zeros(size)
            for name, size in table_sizes(self.schema, self.feature_tables, self._counts()).items()
        }

    def take(self, table: str, part: Tensor, first_row: int, first_column: int) -> None:
        """Keeps what is wanted of a part of a table, which begins at that row and column."""
        rows = self.rows[self._schema_table(table)]
        wanted = np.flatnonzero((rows >= first_row) & (rows < first_row + len(part)))
        columns = slice(first_column, first_column + part.shape[1])
        self.weights[table][torch.from_numpy(wanted), columns] = part[
            torch.from_numpy(rows[wanted] - first_row)
        ].float()

    @torch.no_grad()
    def model(self, towers: Towers) -> tuple[Mail, Batch]:
        """The trainer's model over these rows, whole tables in this process, and the batch with their new numbers."""
        model = Mail(
            *build_tables(self.schema, self.feature_tables, self._counts(), torch.device("cpu")),
            towers,
        )
        for collection in (model.pooled_tables, model.unpooled_tables):
            for key, parameter in collection.named_parameters():
                parameter.copy_(self.weights[key.split(".")[1]])
        pooled, unpooled = (self._renumbered(jagged, tables) for jagged, tables in self._jagged())
        return model.eval(), replace(self.batch, pooled=pooled, unpooled=unpooled)

    def _jagged(self) -> list[tuple[KeyedJaggedTensor, dict[str, str]]]:
        return [
            (self.batch.pooled, self.feature_tables.pooled),
            (self.batch.unpooled, self.feature_tables.unpooled),
        ]

    def _counts(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def _schema_table(self, table: str) -> str:
        return (
            table
            if table in self.rows
            else next(name for name in self.rows if output_table(name) == table)
        )

    def _renumbered(
        self, jagged: KeyedJaggedTensor, tables: Mapping[str, str]
    ) -> KeyedJaggedTensor:
        keys = list(jagged.keys())
        values = [
            torch.from_numpy(
                np.searchsorted(self.rows[self._schema_table(tables[key])], _ids(jagged, key))
            )
            for key in keys
        ]
        return KeyedJaggedTensor(keys, torch.cat(values), lengths=jagged.lengths())


def _ids(jagged: KeyedJaggedTensor, key: str) -> Ints:
    ids: Ints = jagged[key].values().numpy()
    return ids
