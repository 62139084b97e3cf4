"""Shares of the ranks: each piece once, in the order of the files, and equally large."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.ids.count_runs import part_bounds, sorted_run
from mail_torchrec.data.source import PIECE_ROWS, RowGroup, RowGroupPart
from mail_torchrec.vocabularies.shares import row_group_shares, row_shares


def files(sizes: list[int]) -> Any:
    """Row groups of so many rows, in the place of opened files."""
    return SimpleNamespace(
        row_groups=[RowGroup(0, index, size) for index, size in enumerate(sizes)],
        num_rows=sum(sizes),
        num_pieces=lambda group: -(-group.num_rows // PIECE_ROWS),
    )


def pieces(part: RowGroupPart) -> list[tuple[int, int]]:
    num_pieces = -(-part.group.num_rows // PIECE_ROWS)
    stop = num_pieces if part.stop is None else part.stop
    return [(part.group.index, piece) for piece in range(part.first, stop)]


def rows(part: RowGroupPart) -> int:
    start = part.first * PIECE_ROWS
    stop = part.group.num_rows if part.stop is None else part.stop * PIECE_ROWS
    return stop - start


@given(st.lists(st.integers(1, 9 * PIECE_ROWS), min_size=1, max_size=9), st.integers(1, 12))
def test_each_piece_is_read_once_in_the_order_of_the_files(sizes: list[int], ranks: int) -> None:
    source = files(sizes)
    shares = row_shares(source, ranks)
    assert len(shares) == ranks
    found = [piece for part in chain(*shares) for piece in pieces(part)]
    everything = [RowGroupPart(group) for group in source.row_groups]
    assert found == [piece for part in everything for piece in pieces(part)]
    assert all(pieces(part) for part in chain(*shares))
    assert [*chain(*row_group_shares(source, ranks))] == source.row_groups


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([10_000_000], 1.1),
        ([10_000_000, 3_000_000, 7_000_000], 1.2),
        ([50_000] * 6_400, 1.01),
        (np.random.default_rng(1).integers(1, 2_000_000, 300).tolist(), 1.26),
    ],
)
def test_64_ranks_read_equally_many_rows(sizes: list[int], most: float) -> None:
    """Also with fewer row groups than ranks."""
    shares = [sum(map(rows, share)) for share in row_shares(files(sizes), 64)]
    assert max(shares) <= most * sum(sizes) / 64


@pytest.mark.parametrize("kind", [pa.int64(), pa.large_string(), pa.float64()])
def test_64_ranks_merge_equally_many_ids(kind: pa.DataType) -> None:
    ids = pa.array(range(200_000)).cast(kind)
    run = sorted_run(pa.table({"value": ids, "count": np.ones(len(ids), np.int64)}))
    parts = [run.part(*bounds) for bounds in part_bounds(64)]
    assert sorted(pa.concat_tables(parts)["value"].to_pylist()) == sorted(ids.to_pylist())
    assert max(map(len, parts)) < 1.1 * len(ids) / 64
