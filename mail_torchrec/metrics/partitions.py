"""Partitions of the rows of all ranks into groups, by cohort or by the values of a column.

Shape: ``R`` rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.distributed.collectives import gather_objects
from mail_torchrec.metrics.exchange import exchange_by_key
from mail_torchrec.reporting.cohorts import COHORTS, ITEM_COHORTS, USER_ITEM_COHORTS

MISSING, OTHER = "(missing)", "(other)"
"""Names of the groups of rows without a value, and of those with rare values."""


@dataclass(frozen=True)
class Partition:
    """Groups of rows, each row in one of them."""

    names: tuple[str, ...]
    """Names of the groups, the same on every rank."""
    codes_R: NDArray[np.uint16]
    """Index of each row's group."""


def cohort_partitions(
    is_new_R: NDArray[Any], is_new_item_R: NDArray[Any] | None = None
) -> list[Partition]:
    """Returns the partition into new and old users' rows, and that of all rows together.

    With new items, those by items, and by users and items, follow.

    Args:
        is_new_R: true on rows that are reported as new users'.
        is_new_item_R: true on rows that are reported as new items'; None where nothing says so.
    """
    codes_R = _codes(is_new_R)
    users = [Partition(COHORTS[:2], codes_R), Partition(COHORTS[2:], np.zeros_like(codes_R))]
    if is_new_item_R is None:
        return users
    items_R = _codes(is_new_item_R)
    both = Partition(USER_ITEM_COHORTS, (2 * codes_R + items_R).astype(np.uint16))
    return [*users, Partition(ITEM_COHORTS, items_R), both]


def _codes(is_new_R: NDArray[Any]) -> NDArray[np.uint16]:
    """Returns 0 for new rows and 1 for old ones, [R]."""
    return (~is_new_R.astype(np.bool_)).astype(np.uint16)


def value_partition(values_R: pa.Array, max_groups: int) -> Partition:
    """Partitions all ranks' rows by the values of a column; every rank calls it.

    The most frequent values have groups of their own, the one with the most rows first.

    Args:
        values_R: of this rank's rows, as text (large_string).
        max_groups: largest number of such groups.
    """
    encoded = pc.dictionary_encode(values_R)
    texts = encoded.dictionary
    codes_R = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes_R, minlength=len(texts) + 1)[: len(texts)]
    hashes = hash64(texts, "group").view(np.int64)
    names = _most_frequent(hashes, counts, texts, max_groups)
    other, missing = len(names), len(names) + 1
    own = [names.get(hashed, (other, ""))[0] for hashed in hashes.tolist()]
    group_of_code = np.array([*own, missing], np.uint16)
    return Partition(
        (*(text for _, text in names.values()), OTHER, MISSING), group_of_code[codes_R]
    )


def _most_frequent(
    hashes: NDArray[np.int64], counts: NDArray[np.int64], texts: pa.Array, max_groups: int
) -> dict[int, tuple[int, str]]:
    """Finds the most frequent of all ranks' values: hash -> its place and its name.

    Each rank counts the values whose hashes are dealt to it, so that no rank holds all values.

    Args:
        hashes: of this rank's values.
        counts: their numbers of rows.
        texts: the values.
        max_groups: number of values to find.
    """
    records = np.empty(len(hashes), [("key", np.int64), ("count", np.int64)])
    records["key"], records["count"] = hashes, counts
    records = exchange_by_key(records)
    keys, places = np.unique(records["key"], return_inverse=True)
    sums = np.zeros(len(keys), np.int64)
    np.add.at(sums, places, records["count"])
    best = np.lexsort((keys, -sums))[:max_groups]
    candidates = gather_objects(list(zip((-sums[best]).tolist(), keys[best].tolist(), strict=True)))
    chosen = sorted(pair for of_rank in candidates for pair in of_rank)[:max_groups]
    wanted = np.flatnonzero(np.isin(hashes, [key for _, key in chosen]))
    found = {int(hashes[place]): texts[int(place)].as_py() for place in wanted}
    names = {key: text for of_rank in gather_objects(found) for key, text in of_rank.items()}
    ordered = sorted((negative, names[key], key) for negative, key in chosen)
    return {key: (place, _name(text)) for place, (_, text, key) in enumerate(ordered)}


def _name(text: str) -> str:
    """Returns the name of a value's group, which is not that of another group."""
    return f"'{text}'" if text in (MISSING, OTHER) else text
