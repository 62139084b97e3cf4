"""Scenarios to plan for: a grid of ranks, batch sizes and settings on one kind of hardware."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from mail_torchrec.config import Config, load_config, load_run_config
from mail_torchrec.data.content.vector_scales import load_vector_scales
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.schema.columns import EmbeddingTableSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.communication.replicas import ShardingGroup, sharding_group
from mail_torchrec.embeddings.hardware import Hardware, hardware_preset
from mail_torchrec.records.run_record import check_recorded
from mail_torchrec.train.run_dir import RunDir


@dataclass(frozen=True)
class Scenario:
    """One job to plan for."""

    config: Config
    """Configuration with this scenario's batch size and settings."""
    num_rows: dict[str, int]
    """Rows by table name."""
    hardware: Hardware
    """Hardware of every rank."""
    world_size: int
    """Ranks."""
    varied: tuple[str, ...]
    """Overrides in which the scenarios of a grid differ."""
    vector_dims: dict[str, int] = field(default_factory=dict)
    """Number of elements by vector column."""

    @property
    def name(self) -> str:
        """Short name for reports and file names, such as ``8 x 4096``."""
        size = f"{self.world_size} x {self.config.train.batch_size}"
        return size + "".join(f", {override}" for override in self.varied)

    @property
    def group(self) -> ShardingGroup:
        """Ranks that share one copy of the tables.

        Raises:
            ValueError: the ranks do not divide into ``sharding.replicas`` groups.
        """
        hardware = self.hardware
        sizes = self.world_size, hardware.local_world_size
        return sharding_group(self.config.sharding.replicas, *sizes, hardware.device)


@dataclass(frozen=True)
class ScenarioGrid:
    """The scenarios that one command plans for."""

    config: Path
    """Configuration file."""
    of_run: bool
    """Whether it was named by the directory of a run, which may be somebody else's."""
    overrides: tuple[str, ...]
    """Overrides of the configuration in every scenario."""
    hardware_name: str
    """Name of the preset."""
    hardware: Hardware
    """Hardware of every rank, with its overrides."""
    world_sizes: tuple[int, ...]
    """Numbers of ranks."""
    batch_sizes: tuple[int, ...]
    """Rows a rank; if empty, the configuration's."""
    vary: tuple[tuple[str, ...], ...]
    """Lists of alternative overrides; every scenario has one of each list."""
    rows: dict[str, int]
    """Rows of tables that the schema does not give, by table name."""

    def scenarios(self) -> Iterator[Scenario]:
        """Yields every scenario of the grid.

        Raises:
            ValueError: the configuration is not valid, or the size of a table is not known.
        """
        for varied in product(*self.vary):
            config = self._load_config([*self.overrides, *varied])
            num_rows = table_rows(config.schema_, self._built_rows(config.schema_) | self.rows)
            config = config.with_dims(num_rows)
            vector_dims = self._vector_dims(config.schema_)
            batch_sizes = self.batch_sizes or (config.train.batch_size,)
            for world_size, batch_size in product(self.world_sizes, batch_sizes):
                train = config.train.model_copy(update={"batch_size": batch_size})
                resized = config.model_copy(update={"train": train})
                yield Scenario(resized, num_rows, self.hardware, world_size, varied, vector_dims)

    def _load_config(self, overrides: list[str]) -> Config:
        if self.of_run:
            return load_run_config(self.config.parent, overrides)
        return load_config(self.config, overrides)

    def _built_rows(self, schema: Schema) -> dict[str, int]:
        """Returns the rows of vocabularies that a run has built with the same settings.

        A run keeps them beside its configuration.
        """
        run_dir = RunDir(self.config.parent)
        if not (self.config == run_dir.config and run_dir.vocabularies.exists()):
            return {}
        check_recorded(run_dir.path, run_dir.config.name, run_dir.vocabularies.name)
        of_run = load_config(self.config, []).schema_
        return {
            name: schema.id_policy(name).load(run_dir.vocabularies).num_rows
            for name in schema.table_names
            if name in of_run.table_names
            and _ids_of(schema.table(name)) == _ids_of(of_run.table(name))
        }

    def _vector_dims(self, schema: Schema) -> dict[str, int]:
        """Returns the elements of each vector column: of the run's data, or of the schema.

        Raises:
            ValueError: neither tells.
        """
        run_dir, names = RunDir(self.config.parent), schema.vectors()
        if self.config == run_dir.config and run_dir.vocabularies.exists():
            scales = load_vector_scales(run_dir.vocabularies, names)
            return {name: scale.dim for name, scale in scales.items()}
        dims = {name: schema.columns[name].length for name in names}
        if missing := [name for name, dim in dims.items() if dim is None]:
            raise ValueError(
                f"the vectors of {', '.join(missing)} should have a known length; planning reads "
                f"no data: set schema.columns.{missing[0]}.length, or give a run as --config"
            )
        return {name: dim for name, dim in dims.items() if dim is not None}


def parse_grid(
    config: Path,
    overrides: tuple[str, ...],
    *,
    hardware_name: str,
    hardware_overrides: tuple[str, ...],
    ranks: str,
    batch_sizes: str | None,
    vary: tuple[str, ...],
    rows: tuple[str, ...],
) -> ScenarioGrid:
    """Parses the options of the command line.

    Args:
        config: configuration file, or directory of a run, whose vocabularies are built.
        overrides: ``section.key=value`` of every scenario.
        hardware_name: name of a preset.
        hardware_overrides: ``key=value`` of the hardware.
        ranks: numbers with commas between them.
        batch_sizes: likewise; None takes the configuration's.
        vary: ``section.key=value;value``, alternatives to try.
        rows: ``table=number``.

    Raises:
        ValueError: unknown hardware, no positive number of ranks or rows, a ``--vary`` without
            alternatives.
    """
    return ScenarioGrid(
        RunDir(config).config if config.is_dir() else config,
        config.is_dir(),
        overrides,
        hardware_name,
        hardware_preset(hardware_name, hardware_overrides),
        _parse_numbers("--ranks", ranks, 1),
        _parse_numbers("--batch-size", batch_sizes, 2) if batch_sizes else (),
        tuple(_parse_alternatives(text) for text in vary),
        dict(_parse_table_rows(text) for text in rows),
    )


def table_rows(schema: Schema, given: dict[str, int]) -> dict[str, int]:
    """Returns the rows of every table as far as they are known without data.

    Args:
        schema: gives the rows of hashed tables and the most rows of capped vocabularies.
        given: rows by table name, which take precedence.

    Raises:
        ValueError: a name is no table's, or the size of a vocabulary is not known.
    """
    if unknown := sorted(set(given) - set(schema.table_names)):
        raise ValueError(
            f"--rows: no table is called {unknown}; the tables are {', '.join(schema.table_names)}"
        )
    rows = {
        name: given.get(name) or schema.id_policy(name).rows_without_data
        for name in schema.table_names
    }
    if missing := [name for name in schema.table_names if rows[name] is None]:
        raise ValueError(
            f"the vocabularies of {', '.join(missing)} should have a known number of rows; they "
            f"are built from data, which planning does not read: give --rows {missing[0]}=N for "
            f"each, or schema.tables.{missing[0]}.rows, the most rows they may have, or a run that "
            "has built them as --config"
        )
    return {name: number for name, number in rows.items() if number is not None}


def _ids_of(table: EmbeddingTableSettings) -> dict[str, Any]:
    """Returns the settings of a table that its vocabulary depends on."""
    return table.model_dump(include=set(IdSettings.model_fields))


def _parse_numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} should be numbers with commas between them, such as 8,16, received '{text}'"
        ) from None
    if bad := [number for number in numbers if number < least]:
        raise ValueError(f"{option} should be at least {least}, received {bad[0]}")
    return tuple(dict.fromkeys(numbers))


def _parse_alternatives(text: str) -> tuple[str, ...]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(
            "--vary should be KEY=VALUE;VALUE, such as "
            f"'train.tables.name=adagrad;rowwise_adagrad', received '{text}'"
        )
    return tuple(f"{key}={value.strip()}" for value in values.split(";"))


def _parse_table_rows(text: str) -> tuple[str, int]:
    table, _, number = text.rpartition("=")
    if not number.replace("_", "").isdigit() or int(number) < 1:
        raise ValueError(f"--rows should be TABLE=N with a positive number, received '{text}'")
    return table, int(number)
