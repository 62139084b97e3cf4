"""What is asked: a configuration, hardware, and a grid of ranks, batch sizes and settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.schema.schema import Ids, Schema
from mail_torchrec.embeddings.hardware import Hardware, hardware


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    config: Config
    """With this point's batch size and settings."""
    num_rows: dict[str, int]
    """Table -> rows."""
    machine: Hardware
    ranks: int
    varied: tuple[str, ...]
    """The settings that this point has and others have not."""

    @property
    def name(self) -> str:
        """Short, for tables and file names."""
        return f"{self.ranks} x {self.config.train.batch_size}" + "".join(
            f", {text}" for text in self.varied
        )


@dataclass(frozen=True)
class Question:
    """What the command line asked."""

    config: Path
    overrides: tuple[str, ...]
    hardware_name: str
    machine: Hardware
    ranks: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    """Rows a rank; empty: the configuration's."""
    vary: tuple[tuple[str, ...], ...]
    """Lists of alternative overrides, one of each list a point."""
    rows: dict[str, int]

    def cases(self) -> Iterator[Case]:
        """Every point of the grid.

        Raises:
            ValueError: the configuration does not fit, or the size of a table is not known.
        """
        for varied in product(*self.vary):
            config = load_config(self.config, [*self.overrides, *varied])
            num_rows = table_rows(config.schema_, self.rows)
            for ranks, batch_size in product(
                self.ranks, self.batch_sizes or (config.train.batch_size,)
            ):
                train = config.train.model_copy(update={"batch_size": batch_size})
                yield Case(
                    config.model_copy(update={"train": train}),
                    num_rows,
                    self.machine,
                    ranks,
                    varied,
                )


def question(
    config: Path,
    overrides: tuple[str, ...],
    *,
    hardware_name: str,
    figures: tuple[str, ...],
    ranks: str,
    batch_sizes: str | None,
    vary: tuple[str, ...],
    rows: tuple[str, ...],
) -> Question:
    """Reads the command line's words.

    Raises:
        ValueError: unknown hardware, no positive number of ranks or rows, a ``--vary`` without
            alternatives.
    """
    return Question(
        config,
        overrides,
        hardware_name,
        hardware(hardware_name, figures),
        _numbers("--ranks", ranks, 1),
        _numbers("--batch-size", batch_sizes, 2) if batch_sizes else (),
        tuple(_alternatives(text) for text in vary),
        dict(_table_and_rows(text) for text in rows),
    )


def table_rows(schema: Schema, given: dict[str, int]) -> dict[str, int]:
    """Rows of every table, without any data: as given, else what the schema says (a vocabulary's cap included).

    Raises:
        ValueError: a name that is no table's, or a vocabulary of unknown size.
    """
    if unknown := sorted(set(given) - set(schema.table_names)):
        raise ValueError(
            f"--rows: no table is called {unknown}; the tables are {', '.join(schema.table_names)}"
        )
    rows = {name: given.get(name) or schema.table(name).rows for name in schema.table_names}
    if missing := [name for name in schema.table_names if rows[name] is None]:
        hashed = [name for name in missing if schema.table(name).ids is Ids.HASH]
        assert not hashed, "the schema asks hash tables for their rows"
        raise ValueError(
            f"how many rows have the vocabularies of {', '.join(missing)}? They are built from "
            "data, which planning does not read: give "
            f"--rows {missing[0]}=N for each, or schema.tables.{missing[0]}.rows, the most they "
            "may have"
        )
    return {name: number for name, number in rows.items() if number is not None}


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} should be numbers with commas between them, such as 8,16, received '{text}'"
        ) from None
    if bad := [number for number in numbers if number < least]:
        raise ValueError(f"{option} should be at least {least}, received {bad[0]}")
    return tuple(dict.fromkeys(numbers))


def _alternatives(text: str) -> tuple[str, ...]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(
            "--vary should be KEY=VALUE;VALUE, such as "
            f"'train.tables.name=adagrad;rowwise_adagrad', received '{text}'"
        )
    return tuple(f"{key}={value.strip()}" for value in values.split(";"))


def _table_and_rows(text: str) -> tuple[str, int]:
    table, _, number = text.partition("=")
    if not number.replace("_", "").isdigit() or int(number) < 1:
        raise ValueError(f"--rows should be TABLE=N with a positive number, received '{text}'")
    return table, int(number)
