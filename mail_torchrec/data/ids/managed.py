"""Id policy ``managed``: a fixed number of rows that ids get and lose as runs continue.

Rows: 0 is unused, 1 is for nulls, then come ``fallback_rows`` that ids without a row of their own
share by a hash, then the rows that ids own.

Shapes: ``N`` ids, ``V`` ids that own a row.
"""

from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.ids.admission import OwnedRows, admit
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.managed_file import LastUpdate, day_number, read_owned, write_owned
from mail_torchrec.data.ids.policy import (
    FIRST_ROW,
    MISSING_ROW,
    UNKNOWN_ROW,
    IdEncoder,
    IdManifestEntry,
    IdPolicy,
    NewOwners,
)
from mail_torchrec.data.ids.vocabulary import Vocabulary
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


class ManagedIds(IdEncoder):
    """Encodes ids that own a row as that row, all others as one of the fallback rows.

    An id without a row has row ``2 + hash64(id, salt) mod fallback_rows``.

    Args:
        salt: of the hash; the table's name.
        num_rows: rows of the table.
        fallback_rows: rows that ids without one share.
        owned: the other rows and their owners.
        update: what became of the ids when this encoder was made.
    """

    def __init__(
        self, salt: str, num_rows: int, fallback_rows: int, owned: OwnedRows, update: LastUpdate
    ) -> None:
        self._salt, self._num_rows, self.fallback_rows = salt, num_rows, fallback_rows
        self.owned, self.last_update = owned, update
        self._places = Vocabulary(owned.values, np.zeros(len(owned.values), np.int64))
        self._rows_V = owned.rows_V + self.first_own_row
        self._rows = np.concatenate([[UNKNOWN_ROW, MISSING_ROW], self._rows_V])

    @property
    def num_rows(self) -> int:
        """Number of rows of the table, those without owner included."""
        return self._num_rows

    @property
    def values(self) -> pa.Array:
        """Ids that own a row, [V], in the order of their rows."""
        return self.owned.values

    @property
    def rows_V(self) -> Ints:
        """Rows of the ids that own one."""
        return self._rows_V

    @property
    def first_own_row(self) -> int:
        """First row behind the fallback rows."""
        return FIRST_ROW + self.fallback_rows

    @property
    def counts_V(self) -> npt.NDArray[np.float64]:
        """Occurrences of each id that owns a row; those of former runs are decayed."""
        return self.owned.counts_V

    def encode(self, ids: pa.Array) -> Ints:
        """Encodes ids [N] as table rows [N]; nulls become row 1.

        Raises:
            ValueError: strings where the table holds integers, or the other way round.
        """
        found_N = self._places.encode(ids)
        rows_N: Ints = self._rows[found_N]
        is_unknown_N = found_N == UNKNOWN_ROW
        if is_unknown_N.any():
            hashes = hash64(ids.filter(pa.array(is_unknown_N)), self._salt)
            rows_N[is_unknown_N] = FIRST_ROW + (hashes % np.uint64(self.fallback_rows)).astype(
                np.int64
            )
        return rows_N

    def prepare(self) -> "ManagedIds":
        """Makes now what the first call of :meth:`encode` would make, and returns itself."""
        self._places.prepare()
        return self

    def new_owners(self, parent: IdEncoder) -> NewOwners:
        """Returns the rows that belong to other ids than in the parent."""
        assert isinstance(parent, ManagedIds)
        before, rows_V = parent.owned, self.owned.rows_V
        is_owned_R = np.zeros(len(before.generations_R), np.bool_)
        is_owned_R[before.rows_V] = True
        generations_V = self.owned.generations_R[rows_V]
        is_new_V = ~is_owned_R[rows_V] | (generations_V != before.generations_R[rows_V])
        return NewOwners(self._rows_V[is_new_V], generations_V[is_new_V])

    def save(self, folder: Path, table: str) -> None:
        """Writes ``TABLE.parquet``: the owners of the rows, see ``managed_file.py``."""
        path = folder / f"{table}.parquet"
        write_owned(path, self.owned, self.first_own_row, self.last_update)

    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        """Describes the encoding by the file of the owners, the salt and the fallback rows."""
        return IdManifestEntry(
            ManagedPolicy.name,
            vocabulary=f"{folder}/{table}.parquet",
            salt=self._salt,
            fallback_rows=self.fallback_rows,
        )


class ManagedPolicy(IdPolicy):
    """Gives the rows of a table to the ids of the training data, and in continued runs to others.

    Nothing but counts, days and values decides (``admission.py``), once, before the first step.
    """

    name = "managed"
    needs_counts = True

    def check_settings(self) -> None:
        """Checks the rows.

        Raises:
            ValueError: there are none, none but the fallback rows, or settings contradict.
        """
        settings = self.settings
        if settings.rows is None:
            raise ValueError("ids 'managed' needs 'rows', the number of rows of the table")
        least = FIRST_ROW + settings.fallback_rows + 1
        if settings.rows < least:
            raise ValueError(
                f"rows should be at least {least}, with {settings.fallback_rows} fallback_rows and "
                f"two of unknown and null ids, received {settings.rows}; lower fallback_rows"
            )
        if settings.min_count != 1:
            raise ValueError("min_count is of other ids than 'managed'; write admit")
        if settings.evict == "ttl" and settings.ttl_days is None:
            raise ValueError("evict 'ttl' needs 'ttl_days'")

    @property
    def rows_without_data(self) -> int:
        """Number of rows of the settings."""
        assert self.settings.rows is not None
        return self.settings.rows

    def fit(self, counts: IdCounts, day: date | None = None) -> ManagedIds:
        """Gives rows to the most frequent ids, ties in the order of their values."""
        owned = OwnedRows.none(self.rows_without_data - self._first_own_row)
        return self._admit(owned, None, counts, day)

    def update(self, parent: IdEncoder, counts: IdCounts, day: date | None) -> ManagedIds:
        """Admits new ids; see ``admission.py``."""
        if not isinstance(parent, ManagedIds):
            raise ValueError(
                "ids should stay what they are in the run that is continued, received 'managed'; "
                "begin a new run"
            )
        here = self.rows_without_data, self.settings.fallback_rows
        there = parent.num_rows, parent.fallback_rows
        if here != there:
            raise ValueError(
                f"rows and fallback_rows should stay {there[0]} and {there[1]}, as in the run that "
                f"is continued, received {here[0]} and {here[1]}; give the same, or begin a new run"
            )
        return self._admit(parent.owned, parent.last_update.day, counts, day)

    def load(self, folder: Path) -> ManagedIds:
        """Reads ``TABLE.parquet``.

        Raises:
            ValueError: it is damaged.
        """
        path, num_rows = folder / f"{self.table}.parquet", self.rows_without_data
        owned, update = read_owned(path, self._first_own_row, num_rows)
        encoder = ManagedIds(self.table, num_rows, self.settings.fallback_rows, owned, update)
        return encoder.prepare()

    @property
    def _first_own_row(self) -> int:
        return FIRST_ROW + self.settings.fallback_rows

    def _admit(
        self, owned: OwnedRows, before: date | None, counts: IdCounts, day: date | None
    ) -> ManagedIds:
        self._check_day(before, day)
        elapsed = max((day - before).days, 0) if day and before else 0
        number = None if day is None else day_number(day)
        found = admit(owned, counts.table, self.settings, number, elapsed)
        update = LastUpdate(
            day=max(filter(None, (before, day)), default=None),
            admitted=found.admitted,
            evicted=found.evicted,
            expired=found.expired,
            rare=found.rare,
            refused=found.refused,
        )
        self._tell(update, len(found.owned.values), len(found.owned.generations_R))
        of_table = self.table, self.rows_without_data, self.settings.fallback_rows
        return ManagedIds(*of_table, found.owned, update)

    def _check_day(self, before: date | None, day: date | None) -> None:
        """Refuses settings that need a day where none is known; warns where counts do not decay."""
        settings = self.settings
        if day is None and (settings.ttl_days is not None or settings.evict == "lru"):
            setting = "ttl_days" if settings.ttl_days is not None else "evict 'lru'"
            raise ValueError(
                f"{setting} needs the day of the training data, which neither data.train nor the "
                "names of its folders tell; set data.day, such as 2024-05-31"
            )
        if before is not None and (day is None or day < before):
            logger.warning(
                "table '%s': the day of the training data is %s, that of the run that is continued "
                "%s: counts do not decay; set data.day",
                self.table,
                "not known" if day is None else day,
                before,
            )

    def _tell(self, update: LastUpdate, num_owned: int, num_own_rows: int) -> None:
        logger.info(
            "table '%s': %s ids got a row, %s lost theirs (%s evicted, %s expired); %s of %s rows "
            "have an owner; %s ids occur fewer than %s times and share the fallback rows",
            self.table,
            f"{update.admitted:,}",
            f"{update.evicted + update.expired:,}",
            f"{update.evicted:,}",
            f"{update.expired:,}",
            f"{num_owned:,}",
            f"{num_own_rows:,}",
            f"{update.rare:,}",
            self.settings.admit,
        )
        if update.refused:
            logger.warning(
                "table '%s': %s ids that occur often enough were not admitted, for no row was free "
                "or could be taken; raise rows or admit",
                self.table,
                f"{update.refused:,}",
            )
