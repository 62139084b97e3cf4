"""Sample of new and old users from real rows, as requests with one candidate each.

Shape letter: ``R`` rows of a row group.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits, row_days
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.inference.golden import request_candidate, request_user
from mail_torchrec.inference.requests import Request

_SEED = 0
_MAX_ROWS = 2_000_000  # rows that are looked through for users


@dataclass(frozen=True)
class SampledUsers:
    """Requests of distinct users, by whether the run counts them as new."""

    new: list[Request] = field(default_factory=list)
    """Without the behaviours that the simulated cold start hides."""
    old: list[Request] = field(default_factory=list)

    @property
    def num_users(self) -> int:
        """Number of users that there are of either kind."""
        return min(len(self.new), len(self.old))


@dataclass(frozen=True)
class UserSampler:
    """Samples users from the rows of files; equal files give equal users.

    Row groups and their rows are taken in a random order, each user by its first row, until there
    are enough of both kinds or two million rows have been looked through.

    Args:
        schema: columns and tables.
        encoders: fitted id encoders and scales.
        cold_start: simulated cold start of the rows.
        new_user_max_behaviours: users with at most so many behaviours are new.
    """

    schema: Schema
    encoders: Encoders
    cold_start: ColdStartSettings
    new_user_max_behaviours: int

    def __call__(self, source: Source, num_users: int) -> SampledUsers:
        """Samples users.

        Args:
            source: Parquet file or folder.
            num_users: most users of each kind.
        """
        found, seen, num_rows = SampledUsers(), set[object](), 0
        random = np.random.default_rng(_SEED)
        for place in random.permutation(len(source.row_groups)):
            group = source.row_groups[place]
            table = source.read(group)
            for key, is_new, request in self._requests(table, source.file(group), random):
                users = found.new if is_new else found.old
                if len(users) < num_users and key not in seen:
                    seen.add(key)
                    users.append(request())
            num_rows += len(table)
            if found.num_users >= num_users or num_rows >= _MAX_ROWS:
                break
        return found

    def _requests(
        self, table: pa.Table, file: str, random: np.random.Generator
    ) -> Iterator["tuple[object, bool, _RowRequest]"]:
        """Yields each row's user, whether it is new, and its request, in a random order."""
        chunk = ChunkEncoder(
            self.schema, self.encoders, self.cold_start, self.new_user_max_behaviours
        )(table, file)
        name = self.schema.file_column(self.schema.group_key)
        keys = plain_ids(table[name], file=file, name=name)
        limits = HistoryLimits.simulated(
            self.schema, keys, self.cold_start, row_days(table, self.schema, file)
        )
        keys_R = keys.to_pylist()
        for row in random.permutation(len(table)).tolist():
            is_new = bool(chunk.is_cold_R[row])
            yield keys_R[row], is_new, _RowRequest(table, row, limits, is_new)


@dataclass(frozen=True)
class _RowRequest:
    """Request of a row, made when it is called."""

    table: pa.Table
    row: int
    limits: HistoryLimits
    is_new: bool

    def __call__(self) -> Request:
        user = request_user(self.table, self.row, self.limits, self.is_new)
        candidate = request_candidate(self.table, self.row, user, self.limits.schema)
        return Request(user, [candidate])
