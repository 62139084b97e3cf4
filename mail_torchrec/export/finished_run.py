"""Finished run, opened for reading: configuration, encoders, towers, tables."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mail_torchrec.checkpoint.manifest import checkpoint_digest
from mail_torchrec.config import Config, load_run_config
from mail_torchrec.data.column_types import ColumnTypes, load_column_types
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.export.spare_rows import capacity_of
from mail_torchrec.export.stored_weights import ShardConsumer, StoredWeights, weights_folder
from mail_torchrec.export.table_files import TableFile, TableFiles, TableType, convert_table
from mail_torchrec.inference.requests import InputSpec, input_specs
from mail_torchrec.model.mail import Towers
from mail_torchrec.records.run_record import read_recorded
from mail_torchrec.train.assembly import config_feature_tables, table_keys
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.progress import progress_bar

_MODEL, _TOWERS = "model.", "model.towers."

TableShardConsumer = Callable[[str, Tensor, int, int], None]
"""Takes a table's name, a shard [rows, columns] of it, and the row and column of the table at
which the shard begins."""


@dataclass(frozen=True)
class FinishedRun:
    """Parts of a run directory that an export needs."""

    config: Config
    encoders: Encoders
    types: ColumnTypes
    """Types of the columns in the run's files."""
    feature_tables: FeatureTables
    towers: Towers
    """Trained, in evaluation mode."""
    stored: StoredWeights
    """Weights of the run's best checkpoint, or else its last one."""
    metrics: dict[str, Any]
    """Content of the run's ``metrics.json``."""

    @property
    def inputs(self) -> list[InputSpec]:
        """Inputs of the exported model, in the order of the graph."""
        encoders, new_items = self.encoders, self.config.data.new_items
        of_data = encoders.num_rows, encoders.vector_dims, new_items
        return input_specs(self.config.schema_, *of_data)

    @staticmethod
    def open(run_dir: RunDir) -> "FinishedRun":
        """Reads everything but the tables.

        Raises:
            ValueError: no finished run, a damaged one, or one whose rule for new users no server
                could follow.
        """
        folder = weights_folder(run_dir)
        if not run_dir.metrics.exists():
            raise ValueError(
                f"'{run_dir.path}' should be a finished run, but '{run_dir.metrics.name}' is "
                "missing; let the training end first"
            )
        config = load_run_config(run_dir.path)
        _check_new_user_rule(config)
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        config = config.with_dims(encoders.num_rows)
        types = load_column_types(run_dir.vocabularies)
        feature_tables, stored = config_feature_tables(config), StoredWeights(folder)
        towers = Towers(
            config.model,
            config.schema_,
            feature_tables,
            encoders.num_rows,
            negatives_kept=config.data.negatives_kept,
            vector_dims=encoders.vector_dims,
        )
        _load_towers(towers, stored)
        metrics = json.loads(read_recorded(run_dir.path, run_dir.metrics.name))
        return FinishedRun(config, encoders, types, feature_tables, towers, stored, metrics)

    @property
    def checkpoint(self) -> str:
        """Digest of the checkpoint with the weights."""
        return checkpoint_digest(self.stored.folder)

    def capacities(self, spare: float | None) -> dict[str, int] | None:
        """Computes the rows of each table's files with a share of spare ones; None without."""
        if spare is None:
            return None
        tables = table_keys(self.config, self.feature_tables, self.encoders).values()
        num_rows = self.encoders.num_rows
        return {name: capacity_of(num_rows[self.schema_table(name)], spare) for name in tables}

    def schema_table(self, table: str) -> str:
        """Finds the schema's table of a table that may be an output-side one."""
        names = self.config.schema_.table_names
        if table in names:
            return table
        return next(name for name in names if output_table(name) == table)

    def write_tables(
        self, folder: Path, table_type: TableType, on_shard: TableShardConsumer
    ) -> dict[str, TableFiles]:
        """Writes every table, without the rows and columns that are stored but never used.

        Args:
            folder: folder of the files.
            table_type: type of the elements.
            on_shard: called with each shard of each table as it is stored.

        Raises:
            ValueError: a table is missing or unreadable.
        """
        keys = table_keys(self.config, self.feature_tables, self.encoders)
        bar = progress_bar(keys.items(), desc="tables", unit="table")
        return {
            table: self._write_table(_MODEL + key, table, folder, table_type, on_shard)
            for key, table in bar
        }

    def _write_table(
        self,
        key: str,
        table: str,
        folder: Path,
        table_type: TableType,
        on_shard: TableShardConsumer,
    ) -> TableFiles:
        name = self.schema_table(table)
        dim = self.config.schema_.table(name).dim or self.config.schema_.dim
        columns = dim + (table in self.feature_tables.first_order)
        shape = (self.encoders.num_rows[name], columns)
        stored = TableFile(folder / f"{table}.float32", "float32", shape)
        self._check_size(key, stored)
        stored.create()
        self.stored.stream(key, _writer(stored, table, on_shard))
        return convert_table(stored, dim, table_type)

    def _check_size(self, key: str, file: TableFile) -> None:
        found = self.stored.size(key)
        is_too_small = any(size < least for size, least in zip(found, file.shape, strict=False))
        if len(found) != 2 or is_too_small:
            raise ValueError(
                f"table '{key}' should have at least {file.shape} rows and columns, found "
                f"{found}; whose weights are these?"
            )


def _load_towers(towers: Towers, stored: StoredWeights) -> None:
    """Loads the towers' weights, for evaluation: the averaged ones where there are any."""
    keys = {name: stored.averaged(_TOWERS + name) for name in towers.state_dict()}
    dense = stored.load({keys[name]: value for name, value in towers.state_dict().items()})
    towers.load_state_dict({name: dense[key] for name, key in keys.items()})
    towers.eval().requires_grad_(False)


def _writer(file: TableFile, table: str, on_shard: TableShardConsumer) -> ShardConsumer:
    def consume(shard: Tensor, first_row: int, first_column: int) -> None:
        file.write_shard(shard, first_row, first_column)
        on_shard(table, shard, first_row, first_column)

    return consume


def _check_new_user_rule(config: Config) -> None:
    """Refuses a rule for new users that cannot be applied to cut lists, which servers receive."""
    schema, max_behaviours = config.schema_, config.data.new_user_max_behaviours
    shortest = min(schema.columns[name].max_length for name in schema.sequences)
    if schema.new_user is None and max_behaviours >= shortest:
        raise ValueError(
            f"data.new_user_max_behaviours is {max_behaviours}, and a sequence is cut to "
            f"{shortest}: a model that is sent cut lists cannot tell new users from old ones; "
            "train with a smaller number, or with a column of group new_user"
        )
