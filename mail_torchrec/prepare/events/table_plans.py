"""Selected columns of the tables, by the names that they have in queries.

Queries know columns as ``t0_3`` only, so that no name of a file can meet another one or reach SQL.
Their values are integers of 64 bits (times in microseconds since 1970, UTC), float64, text, ...;
the types of the files come back in the rows that are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from mail_torchrec.prepare.events.settings import TimeUnit
from mail_torchrec.prepare.events.table_files import InputFiles


@dataclass(frozen=True)
class SelectedColumn:
    """A column of a table.

    Args:
        source: its name in the files.
        query_name: its name in queries.
        type: its type in the files.
    """

    source: str
    query_name: str
    type: pa.DataType


@dataclass(frozen=True)
class TimeColumn:
    """A column with a time.

    Args:
        source: its name in the files.
        unit: of times that are numbers.
        role: its place in the settings, for messages.
    """

    source: str
    unit: TimeUnit | None
    role: str


@dataclass
class TablePlan:
    """Columns that are read of one table.

    Args:
        files: the files.
        index: number of the table, in names of queries.
        key: column of the user of a log or of the key of a catalogue.
        time: column of the time, of a catalogue that of validity.
        until: column of the end of validity.
        renamed: columns of the files by their names in the settings, where these are given.
        is_by_user: the key is a user, so that the table is split by it.
        is_catalogue: for each key there is one row at a time.
        drops_duplicates: of equal rows one is kept.
        selected: further columns, by their names in the settings.
    """

    files: InputFiles
    index: int
    key: str
    time: TimeColumn | None
    until: TimeColumn | None
    renamed: dict[str, str]
    is_by_user: bool
    is_catalogue: bool
    drops_duplicates: bool
    selected: dict[str, SelectedColumn] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The table's place in the settings."""
        return self.files.label

    @property
    def step(self) -> str:
        """Name of the step that reads the table."""
        return f"read-{self.index:02}"

    @property
    def key_type(self) -> pa.DataType:
        """Type of the key in queries, int64 or text."""
        return engine_type(self.files.type(self.key, f"{self.label}, the key"))

    def select(self, name: str, role: str) -> SelectedColumn:
        """Adds a column to those that are read.

        Args:
            name: its name in the settings.
            role: what asks for it, for messages.

        Raises:
            ValueError: there is none, or it is of a type that rows cannot hold.
        """
        if name not in self.selected:
            source = self.renamed.get(name, name)
            kind = self.files.type(source, role)
            if engine_type(kind) is None:
                raise ValueError(
                    f"{self.files.paths[0]}: column '{source}' should be a number, text, a time, a "
                    f"truth value or a list of them, received {kind}; leave it out by naming the "
                    f"others under {self.label}.columns"
                )
            query_name = f"t{self.index}_{len(self.selected)}"
            self.selected[name] = SelectedColumn(source, query_name, kind)
        return self.selected[name]

    @property
    def query_types(self) -> dict[str, pa.DataType]:
        """Type of each column in queries."""
        types = {"key": self.key_type}
        if self.time is not None:
            types["time"] = pa.int64()
        if self.until is not None:
            types["until"] = pa.int64()
        if self.is_catalogue:
            types["place"] = pa.int64()
        return types | {
            column.query_name: engine_type(column.type) for column in self.selected.values()
        }


def check_unit(
    files: InputFiles, unit: TimeUnit | None, times: Sequence[TimeColumn | None], label: str
) -> None:
    """Checks that a table's own unit has a time of numbers, which alone it is for.

    Args:
        files: of the table.
        unit: its own, if it has one.
        times: its columns of times.
        label: the table's place in the settings.

    Raises:
        ValueError: no time is a number.
    """
    named = [time for time in times if time is not None]
    kinds = [files.type(time.source, time.role) for time in named]
    if unit is None or any(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds
    ):
        return
    found = ", ".join(f"'{time.source}' is {kind}" for time, kind in zip(named, kinds, strict=True))
    raise ValueError(
        f"{label}.unit: '{unit}' should be the unit of a time that is a number, and "
        f"{found or 'the table names no time'} in {files.paths[0]}; leave unit out"
    )


def engine_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type that a column has in queries, None where they cannot hold it."""
    if kind == pa.uint64():  # half of it is beyond int64
        return pa.decimal128(20, 0)
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        value = kind.value_type
        inner = pa.float32() if value in (pa.float16(), pa.float32()) else engine_type(value)
        return None if inner is None or pa.types.is_list(inner) else pa.list_(inner)
    if kind in (pa.string(), pa.bool_()) or pa.types.is_decimal128(kind):
        return kind
    return None


def ibis_type(kind: pa.DataType) -> str:
    """Returns the name that Ibis gives to a type of :func:`engine_type`."""
    if pa.types.is_list(kind):
        return f"array<{ibis_type(kind.value_type)}>"
    if pa.types.is_decimal128(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    names = {pa.float64(): "float64", pa.float32(): "float32", pa.bool_(): "boolean"}
    return names.get(kind, str(kind))


def to_engine(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts values of the files to the type that they have in queries.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64())
    if pa.types.is_date(kind):
        return values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    if is_list_of_times(kind):
        return values.cast(pa.list_(pa.timestamp("us", kind.value_type.tz)), safe=False).cast(
            pa.list_(pa.int64())
        )
    if pa.types.is_list(kind) and pa.types.is_date(kind.value_type):
        values = values.cast(pa.list_(pa.date32())).cast(pa.list_(pa.int32()))
    return values.cast(engine_type(kind))


def from_engine(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts values of queries to the type of the rows; the reverse of :func:`to_engine`."""
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("us", kind.tz)).cast(kind)
    if pa.types.is_date(kind):
        return values.cast(pa.int32()).cast(pa.date32()).cast(kind)
    if is_list_of_times(kind):
        return values.cast(pa.list_(pa.timestamp("us", kind.value_type.tz))).cast(kind)
    if pa.types.is_list(kind) and pa.types.is_date(kind.value_type):
        return values.cast(pa.list_(pa.int32())).cast(pa.list_(pa.date32())).cast(kind)
    return values.cast(kind)


def is_list_of_times(kind: pa.DataType) -> bool:
    """Returns true for a list of timestamps."""
    return bool(pa.types.is_list(kind) and pa.types.is_timestamp(kind.value_type))
