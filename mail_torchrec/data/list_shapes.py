"""Detection of padded lists: one length in every row, filled up with one value.

Shapes: ``R`` rows of a table, ``T`` values of each list.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.parquet.arrow import Bools, list_lengths, one_chunk
from mail_torchrec.data.schema.schema import Schema

_MIN_SHARE = 0.05
"""Share of the lists that a value must fill up to look like padding."""
_MAX_ELSEWHERE = 0.5
"""Lists with the value at another place, at most, for each list that it fills up: an id that is
common at the end is several times as common before it, and padding is rare there."""


@dataclass
class _Filling:
    """Runs of one value at one end of the lists."""

    value: pa.Scalar | None = None
    num_filled: int = 0
    """Lists that begin or end with the value."""
    num_elsewhere: int = 0
    """Lists with the value outside of that run."""
    longest: int = 0
    """Length of the longest run."""

    def add(self, is_value_RT: Bools) -> None:
        """Adds lists, turned so that the run is at their beginning."""
        runs_R = np.logical_and.accumulate(is_value_RT, axis=1).sum(axis=1)
        self.num_filled += int(np.count_nonzero(runs_R))
        self.num_elsewhere += int(np.count_nonzero(is_value_RT.sum(axis=1) > runs_R))
        self.longest = max(self.longest, int(runs_R.max()))

    def merge(self, other: "_Filling") -> None:
        """Adds the runs in other lists, if they are of the same value."""
        if self.value is None:
            self.value = other.value
        if self.value == other.value:
            self.num_filled += other.num_filled
            self.num_elsewhere += other.num_elsewhere
            self.longest = max(self.longest, other.longest)

    def is_padding(self, num_rows: int) -> bool:
        """Returns whether the value looks like padding of so many lists."""
        return self.num_filled == num_rows or (
            self.num_filled >= _MIN_SHARE * num_rows
            and self.longest > 1
            and self.num_elsewhere <= _MAX_ELSEWHERE * self.num_filled
        )


@dataclass
class _Lists:
    """Lists of a column that all had one length so far."""

    length: int
    num_rows: int = 0
    fillings: dict[str, _Filling] = field(
        default_factory=lambda: {"end": _Filling(), "begin": _Filling()}
    )

    def add(self, values: pa.Array) -> None:
        """Adds the values of lists, end to end."""
        self.num_rows += len(values) // self.length
        for end, filling in self.fillings.items():
            if filling.value is None:
                filling.value = _most_common(values[_place(end, self.length) :: self.length])
            if filling.value is None:
                continue
            is_value = pc.fill_null(pc.equal(values, filling.value), False)
            is_value_RT = is_value.to_numpy(zero_copy_only=False).reshape(-1, self.length)
            filling.add(is_value_RT[:, ::-1] if end == "end" else is_value_RT)
            if not filling.is_padding(self.num_rows):
                self.fillings[end] = _Filling()  # another value may be it in later row groups

    def merge(self, other: "_Lists") -> None:
        """Adds other lists of this length."""
        self.num_rows += other.num_rows
        for end, filling in self.fillings.items():
            filling.merge(other.fillings[end])

    def padding(self) -> tuple[str, _Filling] | None:
        """Returns the end that is padded, and with what."""
        found = (
            (end, filling)
            for end, filling in self.fillings.items()
            if filling.value is not None and filling.is_padding(self.num_rows)
        )
        return next(found, None)


class ListShapes:
    """Watches the list columns of training files for padding that nothing says to drop.

    A column looks padded where every list has one length above 1, and one value ends (or begins)
    every list; or ends at least 5 % of them, in runs of more than one, and stands at other places
    in half as many lists at most. Columns whose ``padding`` is set are left out, and so are
    actions, whose padding is their sequence's.

    Args:
        schema: columns.
    """

    def __init__(self, schema: Schema) -> None:
        unset = [name for name in schema.lists if schema.columns[name].padding is None]
        self._schema = schema
        self._watched = [name for name in unset if schema.columns[name].action_of is None]
        self._lists: dict[str, _Lists] = {}

    def add(self, table: pa.Table, _limits: HistoryLimits, _file: str) -> None:
        """Adds the rows of one row group, [R] with the files' columns."""
        for name in list(self._watched) if len(table) else []:
            column = table[self._schema.file_column(name)]
            lengths_R = list_lengths(column)
            lists = self._lists.setdefault(name, _Lists(int(lengths_R[0])))
            if lists.length < 2 or (lengths_R != lists.length).any():
                self._watched.remove(name)
                continue
            lists.add(one_chunk(pc.list_flatten(column)))

    def merge(self, other: "ListShapes") -> None:
        """Adds what was seen of rows that follow; a value counts where it looked like padding."""
        for name in list(self._watched):
            lists, more = self._lists.get(name), other._lists.get(name)
            if name not in other._watched or (lists and more and lists.length != more.length):
                self._watched.remove(name)
            elif more is not None:
                self._lists.setdefault(name, _Lists(more.length)).merge(more)

    def warnings(self) -> list[str]:
        """Words a warning for each column that looks padded."""
        return [
            self._warning(name, self._lists[name], *found)
            for name in self._watched
            if name in self._lists and (found := self._lists[name].padding())
        ]

    def _warning(self, name: str, lists: _Lists, end: str, filling: _Filling) -> str:
        assert filling.value is not None
        value = json.dumps(filling.value.as_py(), ensure_ascii=False)
        return (
            f"column '{self._schema.file_column(name)}': every list has {lists.length} values, and "
            f"{filling.num_filled / lists.num_rows:.0%} of the {lists.num_rows} lists {end} with "
            f"{value}. That looks like padding, whose entries count as ids now: lists are never "
            f"empty, and users without behaviours are no new users. If it is padding, set "
            f"schema.columns.{name}: {{..., padding: {value}}}"
        )


def find_padding(column: pa.ChunkedArray) -> pa.Scalar | None:
    """Finds the value that fills up lists [R] to one length; None where none looks like it."""
    lengths_R = list_lengths(column)
    if not len(lengths_R) or lengths_R[0] < 2 or (lengths_R != lengths_R[0]).any():
        return None
    lists = _Lists(int(lengths_R[0]))
    lists.add(one_chunk(pc.list_flatten(column)))
    found = lists.padding()
    return None if found is None else found[1].value


def _place(end: str, length: int) -> int:
    return length - 1 if end == "end" else 0


def _most_common(values: pa.Array) -> pa.Scalar | None:
    """Returns the most common value that is not null; None where there is none."""
    counts = values.drop_null().value_counts()
    return counts[int(np.argmax(counts.field("counts")))]["values"] if len(counts) else None
