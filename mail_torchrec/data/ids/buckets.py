"""Id policy ``buckets``: numbers share a row where they lie in one interval.

Shapes: ``N`` numbers, ``E`` edges.
"""

from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.policy import (
    FIRST_ROW,
    IdEncoder,
    IdManifestEntry,
    IdPolicy,
    fill_missing_rows,
)
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

_Edges = npt.NDArray[np.float64]


class _StoredEdges(Settings):
    """Edges of a table in its file."""

    edges: list[float] = Field(max_length=2**24)


_STORED = TypeAdapter(_StoredEdges)


class BucketedNumbers(IdEncoder):
    """Encodes a number as the row of its bucket; an edge belongs to the bucket above it.

    Edges 18 and 65 make three buckets: below 18, from 18 to below 65, and from 65 on.

    Args:
        edges_E: rising numbers.
    """

    def __init__(self, edges_E: _Edges) -> None:
        self.edges_E = edges_E

    @property
    def num_rows(self) -> int:
        """Number of rows of the table: a bucket each, and those for unknown and null ids."""
        return FIRST_ROW + len(self.edges_E) + 1

    @property
    def values(self) -> None:
        """None: numbers of a bucket are not told apart."""
        return None

    @property
    def counts_V(self) -> None:
        """None: buckets are not counted."""
        return None

    def encode(self, ids: pa.Array) -> Ints:
        """Encodes numbers [N] as table rows [N]; nulls become row 1."""
        # Arrow's null type and integers of a column that serves as an id too.
        numbers_N = ids.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        rows_N = np.searchsorted(self.edges_E, numbers_N, side="right") + FIRST_ROW
        return fill_missing_rows(rows_N.astype(np.int64), ids)

    def save(self, folder: Path, table: str) -> None:
        """Writes the edges as ``TABLE.edges.json``; floats are written so that they are exact."""
        write_file(_path(folder, table), _StoredEdges(edges=self._edges).model_dump_json() + "\n")

    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        """Describes the encoding by its edges."""
        return IdManifestEntry(BucketPolicy.name, edges=self._edges)

    @property
    def _edges(self) -> list[float]:
        edges: list[float] = self.edges_E.tolist()
        return edges


class BucketPolicy(IdPolicy):
    """Cuts numbers at given edges, or at quantiles of the training data.

    The quantiles are those of all numbers of the training files, counted exactly: with ``n``
    buckets of ``N`` numbers, edge ``i`` is the number at place ``i * N // n`` of them in rising
    order, so that the buckets hold equally many. They depend on the numbers alone, not on their
    order, row groups or ranks. A number that is so frequent that it would be several edges is one,
    and the lowest number is none, so that no bucket is empty.
    """

    name = "buckets"
    takes_numbers = True

    def __init__(self, table: str, settings: IdSettings) -> None:
        super().__init__(table, settings)
        self.needs_counts = isinstance(settings.buckets, int)

    def check_settings(self) -> None:
        """Checks the buckets.

        Raises:
            ValueError: there are none, edges do not rise, or a setting of other policies is there.
        """
        buckets = self.settings.buckets
        if buckets is None:
            raise ValueError("ids 'buckets' needs 'buckets', a number of buckets or their edges")
        if isinstance(buckets, list) and (
            not buckets or any(low >= high for low, high in pairwise(buckets))
        ):
            raise ValueError(
                f"buckets should be a number of at least 2, or edges that rise, received {buckets}"
            )
        if self.settings.rows is not None or self.settings.min_count != 1:
            raise ValueError("rows and min_count are of other ids than 'buckets'; drop them")

    @property
    def rows_without_data(self) -> int:
        """Number of rows; fewer where quantiles coincide."""
        buckets = self.settings.buckets
        assert buckets is not None
        return FIRST_ROW + (buckets if isinstance(buckets, int) else len(buckets) + 1)

    def fit(self, counts: IdCounts, day: date | None = None) -> BucketedNumbers:
        """Takes the edges of the settings, or the quantiles of the counted numbers."""
        buckets = self.settings.buckets
        if isinstance(buckets, int):
            return BucketedNumbers(_quantiles(counts.table, buckets))
        return BucketedNumbers(np.array(buckets, np.float64))

    def load(self, folder: Path) -> BucketedNumbers:
        """Reads ``TABLE.edges.json``.

        Raises:
            ValueError: it is damaged.
        """
        path = _path(folder, self.table)
        try:
            stored = _STORED.validate_json(read_document(path, follow_link=True))
        except ValidationError as error:
            raise ValueError(f"'{path}' is damaged: {first_fault(error)}") from error
        edges_E = np.array(stored.edges, np.float64)
        if (np.diff(edges_E) <= 0).any():
            raise ValueError(f"'{path}' is damaged: its edges do not rise")
        return BucketedNumbers(edges_E)


def _path(folder: Path, table: str) -> Path:
    return folder / f"{table}.edges.json"


def _quantiles(counted: pa.Table, num_buckets: int) -> _Edges:
    """Finds the edges of buckets that hold equally many of the counted numbers."""
    numbers = counted["value"].cast(pa.float64(), safe=False).to_numpy()
    order = np.argsort(numbers)
    numbers, ends = numbers[order], np.cumsum(counted["count"].to_numpy()[order])
    if not len(numbers):
        return np.zeros(0)
    total = int(ends[-1])
    places = [i * total // num_buckets for i in range(1, num_buckets)]
    edges_E: _Edges = np.unique(numbers[np.searchsorted(ends, places, side="right")])
    edges_E = edges_E[edges_E > numbers[0]] + 0.0  # no negative zero
    return edges_E
