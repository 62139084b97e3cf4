"""Shares of the ranks in the rows of some files, each row read by one rank."""

from bisect import bisect_right
from itertools import accumulate, pairwise

from mail_torchrec.data.source import RowGroup, RowGroupPart, Source

_MAX_UNEVEN = 8
"""A share may be so many times smaller or larger by an eighth part to end where a row group does:
whoever begins within a row group decodes the rows before too."""


def row_shares(source: Source, ranks: int) -> list[list[RowGroupPart]]:
    """Deals the rows of a source to ranks: consecutive row groups, and parts of large ones.

    A share ends where a row group does that ends nearby, else at a piece of a row group.

    Args:
        source: opened files.
        ranks: number of shares.

    Returns:
        The parts of each rank, in the order of the files; none where there are fewer pieces than
        ranks.
    """
    ends = list(accumulate(group.num_rows for group in source.row_groups))
    borders = [_border(source, ends, rank, ranks) for rank in range(ranks)]
    borders.append((len(source.row_groups), 0))
    return [_parts(source, first, stop) for first, stop in pairwise(borders)]


def row_group_shares(source: Source, ranks: int) -> list[list[RowGroup]]:
    """Deals whole row groups to ranks, for work that costs little a row.

    Args:
        source: opened files.
        ranks: number of shares.

    Returns:
        The row groups of each rank, in the order of the files.
    """
    shares = row_shares(source, ranks)
    return [[part.group for part in share if not part.first] for share in shares]


def _border(source: Source, ends: list[int], rank: int, ranks: int) -> tuple[int, int]:
    """Returns where the share of a rank begins: row group, and piece of it."""
    row = source.num_rows * rank // ranks
    index = bisect_right(ends, row)
    group = source.row_groups[index]
    before, after = row - (ends[index] - group.num_rows), ends[index] - row
    if min(before, after) * ranks * _MAX_UNEVEN <= source.num_rows:
        return (index, 0) if before <= after else (index + 1, 0)
    num_pieces = source.num_pieces(group)
    piece = round(before / group.num_rows * num_pieces)
    return (index, piece) if piece < num_pieces else (index + 1, 0)


def _parts(source: Source, first: tuple[int, int], stop: tuple[int, int]) -> list[RowGroupPart]:
    """Returns the pieces between two borders."""
    if first == stop:
        return []
    last = stop[0] + (1 if stop[1] else 0)
    return [
        RowGroupPart(
            source.row_groups[index],
            first[1] if index == first[0] else 0,
            stop[1] if index == stop[0] else None,
        )
        for index in range(first[0], last)
    ]
