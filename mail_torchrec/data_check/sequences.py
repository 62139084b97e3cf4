"""Aligned lists of unknown files: histories of behaviours, their parts, and pooled lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.data_check.column_profile import ColumnProfile
from mail_torchrec.data_check.roles import Profiles, overlap

_MIN_OVERLAP = 0.2
_MAX_ACTIONS = 50


@dataclass(frozen=True)
class DraftedSequence:
    """Lists that are equally long in every row.

    Args:
        items: the list with the ids of the target item.
        shared: aligned lists that hold the ids of an item column, by that column.
        action: the aligned list of few values that no item column has, or None.
        others: aligned lists of anything else, times for example.
    """

    items: str
    shared: dict[str, str] = field(default_factory=dict)
    action: str | None = None
    others: list[str] = field(default_factory=list)

    @property
    def lists(self) -> list[str]:
        """All lists of the sequence, that of the items first."""
        action = [] if self.action is None else [self.action]
        return [self.items, *self.shared.values(), *action, *self.others]


def find_sequences(
    profiles: Profiles, item: str | None, by_item: Mapping[str, float]
) -> list[DraftedSequence]:
    """Finds the histories: groups of aligned lists, of which one holds ids of the target item.

    Args:
        profiles: of all columns without a role.
        item: the target item.
        by_item: how far each column follows from the item.
    """
    lists = [column for column in profiles.values() if column.is_list and not column.is_vector]
    lists = [column for column in lists if by_item.get(column.name, 0.0) < 0.8]
    scalars = [
        column
        for column in profiles.values()
        if not column.is_list and column.is_id and by_item.get(column.name, 0.0) >= 0.8
    ]
    if item is None:
        return []
    found = []
    for group in _aligned(lists):
        shares = {column.name: overlap(column, profiles[item]) for column in group}
        items = max(shares, key=lambda name: shares[name])
        if shares[items] > 0.01:
            parts = [column for column in group if column.name != items]
            others = [column for column in scalars if column.name != item]
            found.append(_with_parts(items, parts, others))
    return found


def _with_parts(
    items: str, parts: list[ColumnProfile], scalars: list[ColumnProfile]
) -> DraftedSequence:
    sequence = DraftedSequence(items)
    others: list[ColumnProfile] = []
    for part in parts:
        free = [column for column in scalars if column.name not in sequence.shared]
        best = max(free, key=lambda column: overlap(part, column), default=None)
        if best is not None and part.num_distinct > 2 and overlap(part, best) >= _MIN_OVERLAP:
            sequence.shared[best.name] = part.name
        else:
            others.append(part)
    few = [part for part in others if part.is_id and part.num_distinct <= _MAX_ACTIONS]
    action = few[0].name if few else None
    rest = [part.name for part in others if part.name != action]
    return DraftedSequence(items, sequence.shared, action, rest)


def _aligned(lists: list[ColumnProfile]) -> list[list[ColumnProfile]]:
    """Groups lists that are equally long in every row."""
    groups: list[list[ColumnProfile]] = []
    for column in lists:
        if not column.lengths_R.any():
            continue
        for group in groups:
            if np.array_equal(group[0].lengths_R, column.lengths_R):
                group.append(column)
                break
        else:
            groups.append([column])
    return groups


def is_rising(lists: ColumnProfile) -> bool:
    """Returns whether each list's values never fall, as times of an oldest-first history do."""
    if lists.logical is LogicalType.STRING or not len(lists.flat):
        return False
    rows_V = np.repeat(np.arange(len(lists.lengths_R)), lists.lengths_R)
    values_V = lists.flat.fill_null(0) if lists.flat.null_count else lists.flat
    numbers_V = values_V.cast("int64").to_numpy(zero_copy_only=False)
    is_same_V = rows_V[1:] == rows_V[:-1]
    return bool((np.diff(numbers_V)[is_same_V] >= 0).all())
