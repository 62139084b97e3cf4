"""A finished run, opened for reading: configuration, encoders, dense part, tables."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.export.stored_weights import StoredWeights, weights_folder
from mail_torchrec.export.table_files import RawFile, TableFiles, TableType, converted
from mail_torchrec.model.mail import Towers
from mail_torchrec.train.assembly import feature_tables_of, table_keys
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import bar_interval

_MODEL, _TOWERS = "model.", "model.towers."


@dataclass(frozen=True)
class Run:
    """What an export takes from a run directory."""

    config: Config
    encoders: Encoders
    feature_tables: FeatureTables
    towers: Towers
    """Trained, in evaluation mode."""
    stored: StoredWeights
    metrics: dict[str, Any]

    @staticmethod
    def open(run_dir: RunDir) -> "Run":
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
        config = load_config(run_dir.config, [])
        _check_rule(config)
        encoders, feature_tables, stored = (
            Encoders.load(run_dir.vocabularies, config.schema_),
            feature_tables_of(config),
            StoredWeights(folder),
        )
        towers = Towers(config.model, config.schema_, feature_tables, encoders.num_rows)
        dense = stored.load({_TOWERS + name: value for name, value in towers.state_dict().items()})
        towers.load_state_dict({name.removeprefix(_TOWERS): value for name, value in dense.items()})
        metrics = json.loads(run_dir.metrics.read_text())
        return Run(
            config, encoders, feature_tables, towers.eval().requires_grad_(False), stored, metrics
        )

    def schema_table(self, table: str) -> str:
        """The schema's table whose ids a table is looked up by: its own, or that of which it is the output-side twin."""
        names = self.config.schema_.table_names
        return (
            table if table in names else next(name for name in names if output_table(name) == table)
        )

    def write_tables(
        self, folder: Path, table_type: TableType, also: Callable[[str, Tensor, int, int], None]
    ) -> dict[str, TableFiles]:
        """Writes every table, without the rows and columns that are stored and never read.

        Args:
            folder: of the files.
            table_type: what to make of float32.
            also: is shown each part of each table as it is stored: table, part, first row, first
                column.

        Raises:
            ValueError: a table is missing or unreadable.
        """
        files = {}
        keys = table_keys(self.config, self.feature_tables, self.encoders)
        for bare, table in tqdm(
            keys.items(), desc="tables", unit="table", leave=False, mininterval=bar_interval()
        ):
            key, name = _MODEL + bare, self.schema_table(table)
            dim = self.config.schema_.table(name).dim or self.config.schema_.dim
            columns = dim + (table in self.feature_tables.first_order)
            stored = RawFile(
                folder / f"{table}.float32", "float32", (self.encoders.num_rows[name], columns)
            )
            self._check_size(key, stored)
            stored.create()
            self.stored.stream(key, _both(stored, table, also))
            files[table] = converted(stored, dim, table_type)
        return files

    def _check_size(self, key: str, wanted: RawFile) -> None:
        found = self.stored.size(key)
        if len(found) != 2 or any(
            size < least for size, least in zip(found, wanted.shape, strict=True)
        ):
            raise ValueError(
                f"table '{key}' should have at least {wanted.shape} rows and columns, found "
                f"{found}; whose weights are these?"
            )


def _both(
    stored: RawFile, table: str, also: Callable[[str, Tensor, int, int], None]
) -> Callable[[Tensor, int, int], None]:
    def take(part: Tensor, first_row: int, first_column: int) -> None:
        stored.write(part, first_row, first_column)
        also(table, part, first_row, first_column)

    return take


def _check_rule(config: Config) -> None:
    """Whether the rule for new users can be told from cut lists, which is what a model is sent."""
    schema, most = config.schema_, config.data.new_user_max_behaviours
    shortest = min(schema.columns[name].max_length for name in schema.sequences)
    if schema.new_user is None and most >= shortest:
        raise ValueError(
            f"data.new_user_max_behaviours is {most}, and a sequence is cut to {shortest}: a "
            "model that is sent cut lists cannot tell new "
            "users from old ones; train with a smaller number, or with a column of group new_user"
        )
