"""Admission and eviction of the ids of a managed table, between two runs.

Counts, days and values decide, so that it is the same whatever the order of files, row groups and
ranks.

Shapes: ``V`` ids that own a row, ``R`` rows that ids can own, ``N`` ids of the new files.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.ids.counts import order_by_frequency
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.parquet.arrow import Bools, Ints, one_chunk

NEVER = -(2**40)
"""Day of an id whose day is not known."""
# Multiples of it, modulo 1, fill 0..1 evenly from the first few on.
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_Reals = npt.NDArray[np.float64]
_Places = npt.NDArray[np.int32]


@dataclass(frozen=True)
class OwnedRows:
    """Rows of a table and the ids that own them, in the order of the rows."""

    values: pa.Array
    """Ids [V]."""
    rows_V: Ints
    """Row of each id, counted from the first one that an id can own."""
    counts_V: _Reals
    """Occurrences, those of former runs decayed."""
    days_V: Ints
    """Day on which each was seen last, from 1970; :data:`NEVER` where no day is known."""
    generations_R: Ints
    """Number of ids that owned each row before its owner, or before its next one."""

    @staticmethod
    def none(num_rows: int) -> "OwnedRows":
        """Returns R rows without owners."""
        no_ids = np.zeros(0, np.int64)
        generations_R = np.zeros(num_rows, np.int64)
        return OwnedRows(pa.nulls(0), no_ids, np.zeros(0), no_ids, generations_R)


@dataclass(frozen=True)
class AdmittedIds:
    """Rows after an update, and what became of the ids."""

    owned: OwnedRows
    admitted: int
    """Ids that got a row."""
    evicted: int
    """Ids that lost theirs to another."""
    expired: int
    """Ids that lost theirs because they were not seen for too long."""
    rare: int
    """Ids of the new files without a row because they occur too seldom."""
    refused: int
    """Ids of the new files that occur often enough and found no row."""


def admit(
    owned: OwnedRows, counted: pa.Table, settings: IdSettings, day: int | None, elapsed: int
) -> AdmittedIds:
    """Gives rows to the most frequent new ids, of ids that are not in the new files.

    Args:
        owned: rows before; not changed.
        counted: columns ``value`` and ``count`` of the distinct ids of the new files.
        settings: of the table.
        day: of the new files, from 1970; None where it is not known.
        elapsed: days since the counts of ``owned``.

    Raises:
        ValueError: ids of another type than those that own rows.
    """
    values = one_chunk(counted["value"])
    counts_N = counted["count"].to_numpy()
    owned, is_seen_V, is_old_N = _with_counts(owned, values, counts_N, settings, day, elapsed)
    is_expired_V = np.zeros(len(is_seen_V), np.bool_)
    if settings.ttl_days is not None:
        assert day is not None
        is_expired_V = ~is_seen_V & (owned.days_V < day - settings.ttl_days)
    is_free_R = np.ones(len(owned.generations_R), np.bool_)
    is_free_R[owned.rows_V[~is_expired_V]] = False
    is_frequent_N = counts_N >= settings.admit
    is_evictable_V = ~is_seen_V & ~is_expired_V
    if settings.evict == "ttl":
        is_evictable_V[:] = False
    num_free, num_candidates = (
        int(np.count_nonzero(part)) for part in (is_free_R, is_frequent_N & ~is_old_N)
    )
    num_admitted = min(num_candidates, num_free + int(np.count_nonzero(is_evictable_V)))
    newcomers = _most_frequent(values, counts_N, is_frequent_N & ~is_old_N, num_admitted)
    victims = _lowest(owned, is_evictable_V, max(num_admitted - num_free, 0), settings.evict)
    rows_of_new = np.concatenate([_spread(is_free_R, num_admitted), owned.rows_V[victims]])
    is_gone_V = is_expired_V.copy()
    is_gone_V[victims] = True
    new = values.take(pa.array(newcomers)), rows_of_new, counts_N[newcomers]
    return AdmittedIds(
        _replaced(owned, is_gone_V, *new, day),
        admitted=num_admitted,
        evicted=len(victims),
        expired=int(np.count_nonzero(is_expired_V)),
        rare=int(np.count_nonzero(~is_old_N & ~is_frequent_N)),
        refused=num_candidates - num_admitted,
    )


def _with_counts(
    owned: OwnedRows,
    values: pa.Array,
    counts_N: Ints,
    settings: IdSettings,
    day: int | None,
    elapsed: int,
) -> tuple[OwnedRows, Bools, Bools]:
    """Decays the counts and adds the new ones; marks owners that were seen, and their ids [N]."""
    places_N = _places(values, owned.values)
    is_old_N = places_N >= 0
    seen = places_N[is_old_N]
    decay = 1.0 if settings.half_life_days is None else 2.0 ** (-elapsed / settings.half_life_days)
    counts_V, days_V = owned.counts_V * decay, owned.days_V.copy()
    counts_V[seen] += counts_N[is_old_N]
    if day is not None:
        days_V[seen] = np.maximum(days_V[seen], day)
    is_seen_V = np.zeros(len(counts_V), np.bool_)
    is_seen_V[seen] = True
    counted = OwnedRows(owned.values, owned.rows_V, counts_V, days_V, owned.generations_R)
    return counted, is_seen_V, is_old_N


def _places(values: pa.Array, owners: pa.Array) -> _Places:
    """Returns the place of each value [N] among the owners, -1 where it is none of them."""
    if not len(owners) or not len(values):
        return np.full(len(values), -1, np.int32)
    if values.type != owners.type:
        raise ValueError(
            f"ids should be {owners.type}, as in the run that is continued, received "
            f"{values.type}; cast the column in the file"
        )
    places_N: _Places = pc.fill_null(pc.index_in(values, value_set=owners), -1).to_numpy()
    return places_N


def _most_frequent(values: pa.Array, counts_N: Ints, is_new_N: Bools, number: int) -> Ints:
    """Chooses places of new ids, the most frequent first, ties in the order of their values."""
    candidates = np.flatnonzero(is_new_N)
    counts = counts_N[candidates]
    if 0 < number < len(candidates):
        least = np.partition(counts, len(counts) - number)[len(counts) - number]
        candidates = candidates[counts >= least]
        counts = counts_N[candidates]
    order = order_by_frequency(values.take(pa.array(candidates)), counts)
    return candidates[order[:number]]


def _lowest(owned: OwnedRows, is_evictable_V: Bools, number: int, evict: str) -> Ints:
    """Chooses places of owners to evict, the lowest first; of equal ones the greatest value."""
    evictable = np.flatnonzero(is_evictable_V)
    if not number:
        return evictable[:0]
    counts, days = owned.counts_V[evictable], owned.days_V[evictable]
    ranks = ~_ranks(owned.values.take(pa.array(evictable)))
    keys = (ranks, counts, days) if evict == "lru" else (ranks, days, counts)
    return evictable[np.lexsort(keys)[:number]]


def _ranks(values: pa.Array) -> Ints:
    """Returns integers in the order of distinct values; strings are ordered by their UTF-8."""
    if pa.types.is_integer(values.type):
        integers: Ints = values.to_numpy()
        return integers
    ranks = np.empty(len(values), np.int64)
    ranks[pc.sort_indices(values).to_numpy()] = np.arange(len(values))
    return ranks


def _spread(is_free_R: Bools, number: int) -> Ints:
    """Chooses rows for ids in the order of their frequency, evenly over the table.

    Row-wise sharding gives each rank consecutive rows; so each serves as many lookups.
    """
    rows_F = np.flatnonzero(is_free_R)
    number = min(number, len(rows_F))
    places = np.empty(number, np.int64)
    places[np.argsort(np.arange(number) * _GOLDEN_RATIO % 1)] = np.arange(number)
    return rows_F[places * len(rows_F) // max(number, 1)]


def _replaced(
    owned: OwnedRows,
    is_gone_V: Bools,
    newcomers: pa.Array,
    rows_of_new: Ints,
    counts_of_new: Ints,
    day: int | None,
) -> OwnedRows:
    """Takes rows from the ids that go and gives some to new ones."""
    generations_R = owned.generations_R.copy()
    generations_R[owned.rows_V[is_gone_V]] += 1
    is_kept_V = ~is_gone_V
    kept = owned.values.filter(pa.array(is_kept_V)) if len(owned.values) else newcomers[:0]
    rows = np.concatenate([owned.rows_V[is_kept_V], rows_of_new])
    days_of_new = np.broadcast_to(np.int64(NEVER if day is None else day), len(newcomers))
    order = np.argsort(rows)
    return OwnedRows(
        pa.concat_arrays([kept, newcomers.cast(kept.type)]).take(pa.array(order)),
        rows[order],
        np.concatenate([owned.counts_V[is_kept_V], counts_of_new])[order],
        np.concatenate([owned.days_V[is_kept_V], days_of_new])[order],
        generations_R,
    )
