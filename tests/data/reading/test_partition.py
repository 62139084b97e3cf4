"""Resumed epochs: the next batches are the same, or every remaining row comes once."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mail_torchrec.data.reading import reader as reader_module
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import ConsumedSteps
from mail_torchrec.data.reading.reader import Reader
from tests.data.reading.test_reader import (
    Readers,
    bits,
    files,
    row_groups,
    rows_of_users,
    write_files,
)
from tests.support.plain import some_rows


def in_turns(reader: Reader, num_workers: int) -> list[Batch]:
    """Batches in a DataLoader's order: reader processes take turns while they have any."""
    if not num_workers:
        return list(reader)
    iterators, batches = (
        [iter_of_worker(reader, worker, num_workers) for worker in range(num_workers)],
        [],
    )
    while iterators:
        for iterator in list(iterators):
            if (batch := next(iterator, None)) is None:
                iterators.remove(iterator)
            else:
                batches.append(batch)
    return batches


def iter_of_worker(reader: Reader, worker: int, num_workers: int) -> Iterator[Batch]:
    with patch.object(
        reader_module,
        "get_worker_info",
        lambda: SimpleNamespace(id=worker, num_workers=num_workers),
    ):
        return iter(list(reader))


@files
@given(
    row_groups(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(1, 5),
    st.integers(1, 30),
    st.booleans(),
    st.data(),
)
def test_under_the_same_layout_the_next_batches_are_those_that_would_have_followed(
    tmp_path: Path,
    parts: list[list[int]],
    world_size: int,
    num_workers: int,
    batch_size: int,
    shuffle_buffer_size: int,
    by_user: bool,
    data: st.DataObject,
) -> None:
    num_rows = sum(map(sum, parts))
    write_files(tmp_path, rows_of_users([i * 7 % 3 for i in range(num_rows)]), parts)
    readers = Readers(
        tmp_path, shuffle_buffer_size=shuffle_buffer_size, group_by_user=by_user, needs_match=True
    )
    for rank in range(world_size):
        reader = readers.reader(
            rank, world_size, batch_size, num_workers=num_workers, shuffle=True, negatives=True
        )
        reader.set_epoch(1)
        straight, consumed = in_turns(reader, num_workers), ()
        assert len(straight) == len(reader)
        for steps in data.draw(
            st.lists(st.integers(0, len(straight)), max_size=3)
        ):  # stopped several times
            steps = min(steps, reader.steps_left)
            consumed = reader.consumed(steps)
            reader.set_epoch(1, consumed)
        assert reader.steps_left == len(straight) - (consumed[0].steps if consumed else 0)
        rest = in_turns(reader, num_workers)
        assert [bits(batch) for batch in rest] == [
            bits(batch) for batch in straight[len(straight) - reader.steps_left :]
        ]


@files
@given(
    row_groups(),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 5), st.integers(1, 30)),
        min_size=2,
        max_size=4,
    ),
    st.booleans(),
    st.data(),
)
def test_under_any_layouts_one_after_another_every_row_is_read_once(
    tmp_path: Path,
    parts: list[list[int]],
    layouts: list[tuple[int, int, int, int]],
    by_user: bool,
    data: st.DataObject,
) -> None:
    num_rows = sum(map(sum, parts))
    write_files(tmp_path, some_rows(num_rows), parts)
    found: list[int] = []
    consumed: tuple[ConsumedSteps, ...] = ()
    for number, (world_size, num_workers, batch_size, shuffle_buffer_size) in enumerate(layouts):
        readers = Readers(tmp_path, shuffle_buffer_size=shuffle_buffer_size, group_by_user=by_user)
        world_size = min(world_size, num_rows)
        ranks = [
            readers.reader(rank, world_size, batch_size, num_workers=num_workers, shuffle=True)
            for rank in range(world_size)
        ]
        for reader in ranks:
            reader.set_epoch(2, consumed)
        left, is_last = ranks[0].steps_left, number == len(layouts) - 1
        steps = left if is_last else data.draw(st.integers(0, left))
        sizes = set()
        for reader in ranks:
            batches = in_turns(reader, num_workers)
            assert len(batches) == left
            sizes.add(tuple(map(len, batches)))
            found += readers.numbers(batches[:steps])
        assert len(sizes) == 1, "row-wise tables need batches of one size on all ranks"
        consumed = ranks[0].consumed(steps)
    assert sorted(found) == list(range(num_rows))


@files
@given(
    row_groups(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(1, 5),
    st.integers(1, 30),
    st.booleans(),
)
def test_unshuffled_rows_are_numbered_as_they_come(
    tmp_path: Path,
    parts: list[list[int]],
    world_size: int,
    num_workers: int,
    batch_size: int,
    shuffle_buffer_size: int,
    by_user: bool,
) -> None:
    write_files(tmp_path, some_rows(sum(map(sum, parts))), parts)
    readers = Readers(tmp_path, shuffle_buffer_size=shuffle_buffer_size, group_by_user=by_user)
    ranks = [
        readers.reader(rank, world_size, batch_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    for reader in ranks:
        found = [readers.numbers([batch]) for batch in in_turns(reader, num_workers)]
        assert [list(rows) for _, rows in reader.batch_rows()] == found


@pytest.mark.parametrize("steps", [0, 3, 6])
def test_reader_processes_go_on_where_they_were(tmp_path: Path, steps: int) -> None:
    write_files(tmp_path, some_rows(41), [[10, 3], [20, 8]])
    readers = Readers(tmp_path, shuffle_buffer_size=9)

    def rest(num_done: int) -> list[Batch]:
        reader = readers.reader(batch_size=6, num_workers=2, shuffle=True)
        reader.set_epoch(3, reader.consumed(num_done))
        return list(DataLoader(reader, batch_size=None, num_workers=2))

    assert [bits(batch) for batch in rest(steps)] == [bits(batch) for batch in rest(0)[steps:]]


def test_row_groups_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    write_files(tmp_path, some_rows(40), [[4] * 10])
    readers = Readers(tmp_path, shuffle_buffer_size=8)
    reader = readers.reader(shuffle=True)
    reader.set_epoch(0, reader.consumed(6))
    with patch.object(
        type(readers.source), "read", autospec=True, side_effect=type(readers.source).read
    ) as reading:
        assert len(list(reader)) == 4
    assert len({call.args[1] for call in reading.call_args_list}) == 4
    assert np.all([call.args[1].num_rows == 4 for call in reading.call_args_list])
