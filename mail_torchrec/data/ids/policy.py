"""Interface of an id policy, which turns the raw ids of one embedding table into its rows.

Row 0 of every table is for unknown ids, row 1 for nulls; the ids' own rows begin at row 2.

Shapes: ``N`` ids, ``V`` ids that have a row (where none are known: rows that ids can have).
"""

from abc import ABC, abstractmethod
from datetime import date
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.parquet.arrow import Bools, Ints

UNKNOWN_ROW = 0
"""Table row of an id that the encoder does not know."""
MISSING_ROW = 1
"""Table row of a null."""
FIRST_ROW = 2
"""First table row that belongs to ids."""


class IdManifestEntry(NamedTuple):
    """Fields of an exported model's manifest that tell how a table's ids are encoded."""

    ids: str
    """Name of the policy."""
    vocabulary: str | None = None
    """Parquet file of the known values in the order of their rows, relative to the model."""
    salt: str | None = None
    """Salt of the hash."""
    edges: list[float] | None = None
    """Edges of the buckets."""
    fallback_rows: int | None = None
    """Rows that ids without a row of their own share by the hash."""


class NewOwners(NamedTuple):
    """Rows of a table that an update of its encoder gave to other ids.

    They begin with fresh weights and without optimizer state.
    """

    rows_N: Ints
    """Table rows, rising."""
    generations_N: Ints
    """Number of ids that owned each row before."""


class IdEncoder(ABC):
    """Encodes the ids of one table; made by :class:`IdPolicy` and saved with the model."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Number of rows of the table, those for unknown and null ids included."""

    @property
    @abstractmethod
    def values(self) -> pa.Array | None:
        """Known ids [V] in the order of their rows; None where the encoder stores none."""

    @property
    def rows_V(self) -> Ints:
        """Table rows of the known ids; of all ids where none are known."""
        return np.arange(FIRST_ROW, self.num_rows)

    @property
    def first_own_row(self) -> int:
        """First row that one id can have for itself; unknown ids share those before it."""
        return FIRST_ROW

    @property
    @abstractmethod
    def counts_V(self) -> Ints | npt.NDArray[np.float64] | None:
        """Occurrences of each known id in the training data; None where none were counted."""

    @abstractmethod
    def encode(self, ids: pa.Array) -> Ints:
        """Encodes ids as table rows.

        Args:
            ids: [N], int64, large_string, or float64 where the policy takes numbers; nulls
                allowed.

        Returns:
            Table rows [N].

        Raises:
            ValueError: the ids are of another type than those of the training data.
        """

    def is_unknown(self, rows_N: Ints) -> Bools:
        """Marks encoded ids [N] that have no row of their own."""
        return is_unknown(rows_N, self.first_own_row)

    def new_owners(self, parent: "IdEncoder") -> NewOwners:
        """Returns the rows that belong to other ids than in the encoder it was updated from."""
        return NewOwners(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @abstractmethod
    def save(self, folder: Path, table: str) -> None:
        """Writes the encoder's state, if it has any, into a folder that all tables share."""

    @abstractmethod
    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        """Describes the encoding in the manifest of an exported model.

        Args:
            folder: of :meth:`save`, relative to the model.
            table: name of the table.
        """


class IdPolicy(ABC):
    """Builds the :class:`IdEncoder` of one embedding table.

    Args:
        table: name of the table.
        settings: of the table.
    """

    name: ClassVar[str]
    """Value of ``schema.tables.TABLE.ids`` that chooses this policy."""
    needs_counts: bool
    """True where :meth:`fit` needs the ids of the training data counted."""
    takes_numbers: ClassVar[bool] = False
    """True where the ids are numbers, float64, instead of integers, strings or booleans."""

    def __init__(self, table: str, settings: IdSettings) -> None:
        self.table, self.settings = table, settings

    @abstractmethod
    def check_settings(self) -> None:
        """Checks the settings of the table.

        Raises:
            ValueError: the policy cannot work with them; the message says what to change.
        """

    @property
    @abstractmethod
    def rows_without_data(self) -> int | None:
        """Number of rows as far as the settings tell (a vocabulary's maximum); None: unknown."""

    def keep_counted(self, counted: pa.Table) -> pa.Table:
        """Leaves out counts that neither :meth:`fit` nor :meth:`update` needs; by default none.

        Args:
            counted: columns ``value`` and ``count``, of all training files, of some of the ids.
        """
        return counted

    @abstractmethod
    def fit(self, counts: IdCounts, day: date | None = None) -> IdEncoder:
        """Builds the encoder.

        Args:
            counts: of the ids of all training files; empty unless :attr:`needs_counts`.
            day: of the training files; None where none is known.
        """

    def update(self, parent: IdEncoder, counts: IdCounts, day: date | None) -> IdEncoder:
        """Builds the encoder of a run that continues another one; by default it stays as it is.

        Args:
            parent: encoder of the run that is continued; it is not changed.
            counts: of the ids of the new training files; empty unless :attr:`needs_counts`.
            day: of the new files; None where none is known.

        Raises:
            ValueError: the ids are of another type than the parent's.
        """
        return parent

    @abstractmethod
    def load(self, folder: Path) -> IdEncoder:
        """Reads what :meth:`IdEncoder.save` wrote.

        Raises:
            FileNotFoundError: a file is missing.
        """


def is_unknown(rows_N: Ints, first_own_row: int | Ints) -> Bools:
    """Marks table rows that unknown ids share: those before the first own one but nulls'.

    Args:
        rows_N: of any shape.
        first_own_row: of the table; or ``[columns, 1]``, of each row of ``rows_N``.
    """
    marked_N: Bools = (rows_N < first_own_row) & (rows_N != MISSING_ROW)
    return marked_N


def fill_missing_rows(rows_N: Ints, ids: pa.Array) -> Ints:
    """Writes :data:`MISSING_ROW` into ``rows_N`` where ``ids`` [N] are null."""
    if ids.null_count:
        rows_N[pc.is_null(ids).to_numpy(zero_copy_only=False)] = MISSING_ROW
    return rows_N
