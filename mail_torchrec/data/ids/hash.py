"""Id policy ``hash``: all values share a fixed number of rows by a hash of the value.

Shapes: ``N`` ids.
"""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.policy import (
    FIRST_ROW,
    IdEncoder,
    IdManifestEntry,
    IdPolicy,
    fill_missing_rows,
)
from mail_torchrec.data.parquet.arrow import Ints


class HashedIds(IdEncoder):
    """Encodes an id as ``2 + hash64(id, salt) mod (rows - 2)``; no id is unknown.

    Args:
        salt: of the hash. Each table has its own (its name), so that tables do not share their
            collisions.
        num_rows: rows of the table, those for unknown and null ids included.
    """

    def __init__(self, salt: str, num_rows: int) -> None:
        self._salt, self._num_rows = salt, num_rows

    @property
    def num_rows(self) -> int:
        """Number of rows of the table, those for unknown and null ids included."""
        return self._num_rows

    @property
    def values(self) -> None:
        """None: a hash stores no ids."""
        return None

    @property
    def counts_V(self) -> None:
        """None: no ids were counted."""
        return None

    def encode(self, ids: pa.Array) -> Ints:
        """Encodes ids [N] as table rows [N]; nulls become row 1."""
        hashes_N = hash64(ids, self._salt) % np.uint64(self._num_rows - FIRST_ROW)
        return fill_missing_rows(hashes_N.astype(np.int64) + FIRST_ROW, ids)

    def save(self, folder: Path, table: str) -> None:
        """Writes nothing: the settings say it all."""

    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        """Describes the encoding by its salt."""
        return IdManifestEntry(HashPolicy.name, salt=self._salt)


class HashPolicy(IdPolicy):
    """Hashes ids into ``rows`` rows, whatever the data."""

    name = "hash"
    needs_counts = False

    def check_settings(self) -> None:
        """Checks that ``rows`` is set.

        Raises:
            ValueError: it is not.
        """
        if self.settings.rows is None:
            raise ValueError("ids 'hash' needs 'rows', the number of rows to hash into")

    @property
    def rows_without_data(self) -> int:
        """Number of rows of the settings."""
        assert self.settings.rows is not None
        return self.settings.rows

    def fit(self, counts: IdCounts, day: date | None = None) -> HashedIds:
        """Builds the encoder from the settings alone."""
        return HashedIds(self.table, self.rows_without_data)

    def load(self, folder: Path) -> HashedIds:
        """Builds the encoder from the settings alone."""
        return HashedIds(self.table, self.rows_without_data)
