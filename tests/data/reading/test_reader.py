"""Batches: every row once, equal steps on all ranks, the same bits for the same seed."""

import pickle
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.negatives import NegativeDistribution, NegativeSampler
from mail_torchrec.data.reading import reader as reader_module
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.reading.shuffle import EpochShuffle
from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source
from tests.support import plain
from tests.support.plain import any_rows, encoded, numbers, row, some_rows, vocabularies, write

files = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
NUM_NEGATIVES = 10


class Readers:
    """Readers of one folder, one a rank, with what they share."""

    def __init__(
        self, folder: Path, *, needs_match: bool = False, train: Path | None = None, **options: Any
    ) -> None:
        self.schema = plain.schema()
        self.settings = DataSettings(**options)
        self.source = Source(str(folder), self.schema)
        self.encoders: Encoders = fit_encoders(
            Source(str(train or folder), self.schema), self.schema, self.settings.cold_start
        )
        self.feature_tables = build_feature_tables(self.schema, needs_match=needs_match)
        self.ages: list[int] = self.encoders.tables["age"].values.to_pylist()  # type: ignore[attr-defined]

    def reader(
        self,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 4,
        *,
        num_workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        negatives: bool = False,
    ) -> Reader:
        samplers = (
            {
                "history": NegativeSampler(
                    NegativeDistribution.UNIFORM,
                    NUM_NEGATIVES,
                    self.encoders.tables["item"],
                    "item",
                )
            }
            if negatives
            else {}
        )
        return Reader(
            self.source,
            self.schema,
            self.encoders,
            self.feature_tables,
            self.settings.model_copy(update={"num_workers": num_workers}),
            rank_info=RankInfo(rank, world_size),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            samplers=samplers,
        )

    def all_ranks(self, world_size: int, num_workers: int = 0, **options: Any) -> list[list[Batch]]:
        """Rank -> its batches."""
        return [
            list(
                with_workers(
                    self.reader(rank, world_size, num_workers=num_workers, **options), num_workers
                )
            )
            for rank in range(world_size)
        ]

    def numbers(self, batches: list[Batch]) -> list[int]:
        return [number for batch in batches for number in numbers(batch, self.ages)]


def with_workers(reader: Reader, num_workers: int) -> Iterator[Batch]:
    """The batches of each worker, one worker after another, all in this process."""
    if not num_workers:
        yield from reader
    for worker in range(num_workers):
        with patch.object(
            reader_module,
            "get_worker_info",
            lambda w=worker: SimpleNamespace(id=w, num_workers=num_workers),
        ):
            yield from reader


def bits(batch: Batch) -> list[Any]:
    parts = [
        batch.numeric_BN,
        batch.labels_B,
        batch.conversions_B,
        batch.weights_B,
        batch.users_B,
        batch.is_cold_B,
        batch.is_new_B,
        batch.counts,
    ]
    for jagged in (batch.pooled, batch.unpooled):
        parts += [jagged.values(), jagged.lengths()]
    for match in batch.match.values():
        parts += [match.last_U, match.negatives_K, match.last_log_q_U, match.negatives_log_q_K]
    return [part.tolist() for part in parts]


@st.composite
def row_groups(draw: st.DrawFn) -> list[list[int]]:
    """The sizes of the row groups of some files."""
    sizes = st.lists(st.integers(0, 9), max_size=4)
    return draw(
        st.lists(sizes, min_size=1, max_size=3).filter(lambda parts: sum(map(sum, parts)) >= 5)
    )


def write_files(folder: Path, rows: list[plain.Row], parts: list[list[int]]) -> None:
    for old in folder.glob("*.parquet"):
        old.unlink()
    ends = list(accumulate(sum(part) for part in parts))
    for i, part in enumerate(parts):
        write(folder / f"{i}.parquet", rows[ends[i] - sum(part) : ends[i]], part)


@files
@given(
    row_groups(),
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(1, 12),
    st.integers(1, 30),
    st.booleans(),
)
def test_every_row_is_read_once_and_all_ranks_take_equal_steps(
    tmp_path: Path,
    parts: list[list[int]],
    world_size: int,
    num_workers: int,
    batch_size: int,
    shuffle_buffer_size: int,
    shuffle: bool,
) -> None:
    num_rows = sum(map(sum, parts))
    write_files(tmp_path, some_rows(num_rows), parts)
    readers = Readers(tmp_path, shuffle_buffer_size=shuffle_buffer_size)
    ranks = readers.all_ranks(world_size, num_workers, batch_size=batch_size, shuffle=shuffle)
    assert sorted(number for batches in ranks for number in readers.numbers(batches)) == list(
        range(num_rows)
    )
    steps = -(-num_rows // (world_size * batch_size))
    assert [len(batches) for batches in ranks] == [steps] * world_size
    assert len(readers.reader(0, world_size, batch_size)) == steps
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert all(other == sizes[0] for other in sizes), "all ranks have batches of one size"
    assert max(sizes[0]) <= batch_size
    assert max(sizes[0]) - min(sizes[0]) <= 1
    weights = [
        weight for batches in ranks for batch in batches for weight in batch.weights_B.tolist()
    ]
    assert (weights.count(1.0), weights.count(0.0)) == (num_rows, -num_rows % world_size)


@pytest.mark.parametrize("world_size", [1, 2])
def test_reader_processes_read_every_row_once(tmp_path: Path, world_size: int) -> None:
    write_files(tmp_path, some_rows(41), [[10, 3], [20, 8]])
    readers = Readers(tmp_path, shuffle_buffer_size=9)
    found = []
    for rank in range(world_size):
        reader = readers.reader(rank, world_size, num_workers=2, shuffle=True)
        batches = list(DataLoader(reader, batch_size=None, num_workers=2))
        assert len(batches) == len(reader)
        found += readers.numbers(batches)
        assert sorted(map(str, map(bits, batches))) == sorted(
            map(str, map(bits, with_workers(reader, 2)))
        )
    assert sorted(found) == list(range(41))


@files
@given(row_groups(), st.sampled_from([1, 2, 3]), st.integers(1, 30))
def test_without_shuffle_rows_come_in_file_order(
    tmp_path: Path, parts: list[list[int]], world_size: int, shuffle_buffer_size: int
) -> None:
    write_files(tmp_path, some_rows(sum(map(sum, parts))), parts)
    readers = Readers(tmp_path, shuffle_buffer_size=shuffle_buffer_size)
    found = [
        number for batches in readers.all_ranks(world_size) for number in readers.numbers(batches)
    ]
    assert found == list(range(sum(map(sum, parts))))


def test_a_rank_reads_its_own_row_groups_and_each_of_them_once(tmp_path: Path) -> None:
    """Only one that lies on the border of two ranks is read by both."""
    write_files(tmp_path, some_rows(60), [[10] * 3, [5] * 4, [10]])
    readers, read = Readers(tmp_path, shuffle_buffer_size=7), []
    with patch.object(Source, "read", autospec=True, side_effect=Source.read) as reading:
        for rank in range(3):
            list(readers.reader(rank, 3))
            read.append([call.args[1].num_rows for call in reading.call_args_list])
            reading.reset_mock()
    assert read == [[10, 10], [10, 5, 5], [5, 5, 10]]


def test_the_shuffle_depends_on_seed_and_epoch_and_nothing_else(tmp_path: Path) -> None:
    write_files(tmp_path, some_rows(60), [[10] * 3, [15] * 2])
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1):
            reader = Readers(tmp_path, shuffle_buffer_size=25, needs_match=True).reader(
                shuffle=True, seed=seed, negatives=True
            )
            reader.set_epoch(epoch)
            orders[seed, epoch] = [bits(batch) for batch in reader]
            torch.rand(3)  # no global generator is used
            assert [bits(batch) for batch in reader] == orders[seed, epoch], (
                "same seed and epoch, same bits"
            )
    assert len({str(order) for order in orders.values()}) == 4


@pytest.mark.parametrize("num_done", [0, 3])
def test_prefetched_chunks_are_the_ones_that_come(tmp_path: Path, num_done: int) -> None:
    write_files(tmp_path, some_rows(60), [[10] * 3, [15] * 2])
    readers = Readers(tmp_path, shuffle_buffer_size=25, needs_match=True)
    expected = {}
    for epoch in (0, 1, 2):
        plain_reader = readers.reader(shuffle=True, negatives=True)
        plain_reader.set_epoch(epoch)
        expected[epoch] = [bits(batch) for batch in plain_reader]
    reader = readers.reader(shuffle=True, negatives=True)
    position = reader.consumed(num_done) if num_done else ()
    with patch.object(Reader, "_prefetch", autospec=True, side_effect=Reader._prefetch) as prefetch:
        reader.set_epoch(0, position)
        reader.prefetch()
        reader.set_epoch(0, position, followed=True)
        assert [bits(batch) for batch in reader] == expected[0][num_done:]
        assert prefetch.call_count == 2, "this epoch's and the next one's, each once"
        assert [bits(batch) for batch in reader] == expected[0][num_done:], (
            "another time, although the next epoch was prefetched"
        )
        reader.set_epoch(1, followed=True)
        assert [bits(batch) for batch in reader] == expected[1]
        reader.set_epoch(0)  # not the epoch that was prefetched
        assert [bits(batch) for batch in reader] == expected[0]
        reader.set_epoch(2)
        assert [bits(batch) for batch in reader] == expected[2]


def test_the_shuffle_mixes_within_and_across_row_groups(tmp_path: Path) -> None:
    write_files(tmp_path, some_rows(60), [[10] * 6])
    readers = Readers(tmp_path, shuffle_buffer_size=20)
    found = readers.numbers(list(readers.reader(shuffle=True, batch_size=5)))
    chunks = [found[i : i + 20] for i in range(0, 60, 20)]
    assert any(sorted(chunk) != list(range(20 * i, 20 * i + 20)) for i, chunk in enumerate(chunks))
    for chunk in chunks:
        groups = {number // 10 for number in chunk}
        assert len(groups) == 2, "a chunk is two whole row groups"
        assert {number // 10 for number in chunk[:10]} == groups, "and its rows are mixed"


def visits_of(rows: list[plain.Row]) -> list[tuple[int, int]]:
    """User of each row, and how many states of the user (attributes, histories) came so far."""
    sides: dict[int, list[list[Any]]] = {}
    visits = []
    for each in rows:
        seen, side = (
            sides.setdefault(each["user"], []),
            [each[name] or [] for name in ("history", "actions")],
        )
        side += [each[name] for name in ("age", "city", "income")]
        if not seen or seen[-1] != side:
            seen.append(side)
        visits.append((each["user"], len(seen)))
    return visits


@files
@given(any_rows(), any_rows(), st.integers(1, 9), st.booleans(), st.data())
def test_jagged_tensors_hold_the_rows_of_each_key(
    tmp_path: Path,
    train: list[plain.Row],
    rows: list[plain.Row],
    batch_size: int,
    grouped: bool,
    data: st.DataObject,
) -> None:
    """Deduplicated user-side columns hold each user once, where the inverse indices lead."""
    rows = (
        data.draw(st.permutations([{**row, "item": item} for row in rows for item in range(3)]))
        if grouped
        else rows
    )
    write(tmp_path / "train" / "a.parquet", train)
    write(tmp_path / "test" / "a.parquet", rows, row_groups=[len(rows)])
    readers = Readers(tmp_path / "test", train=tmp_path / "train", group_by_user=grouped)
    known, start, visits = vocabularies(train, set()), 0, visits_of(rows)
    for batch in readers.reader(batch_size=batch_size):
        part = rows[start : start + len(batch)]
        start += len(batch)
        assert (batch.pooled.keys(), batch.unpooled.keys()) == (
            ["age", "city", "hour", "tags"],
            ["history", "actions", "item"],
        )
        for column in plain.TABLES:
            jagged = (batch.pooled if column in batch.pooled.keys() else batch.unpooled)[column]
            values = [encoded(row, column, known, set()) for row in part]
            if batch.dedup is not None and column in ("age", "city", "history", "actions"):
                first = batch.dedup.first_rows_U.tolist()
                assert [
                    values[first[user]] for user in batch.dedup.inverse_indices_B.tolist()
                ] == values
                values = [value if row in first else [] for row, value in enumerate(values)]
            assert jagged.lengths().tolist() == [len(value) for value in values]
            assert jagged.values().tolist() == [x for value in values for x in value]
        if batch.dedup is not None:
            assert len(batch.dedup.first_rows_U) <= len(set(visits[start - len(batch) : start])), (
                "rows are deduplicated wherever they can be"
            )
        assert batch.labels_B.tolist() == [float(row["clicked"]) for row in part]
        assert (batch.labels_B.dtype, batch.numeric_BN.dtype, batch.weights_B.dtype) == (
            torch.float32,
        ) * 3


@files
@given(any_rows(), any_rows(), st.sampled_from([1, 2, 3]))
def test_unknown_ids_and_cut_lists_are_counted_once(
    tmp_path: Path, train: list[plain.Row], rows: list[plain.Row], world_size: int
) -> None:
    rows = (rows * 3)[: max(len(rows), world_size)]
    write(tmp_path / "train" / "a.parquet", train)
    write(tmp_path / "test" / "a.parquet", rows)
    readers = Readers(tmp_path / "test", train=tmp_path / "train")
    known = vocabularies(train, set())
    counts = sum(batch.counts for batches in readers.all_ranks(world_size) for batch in batches)
    found = dict(zip(readers.reader().count_names, counts.tolist(), strict=True))  # type: ignore[union-attr]
    expected = {
        f"unknown/{column}": sum(encoded(row, column, known, set()).count(0) for row in rows)
        for column in plain.TABLES
    }
    expected |= {
        f"cut/{column}": sum(len(row[column] or []) > limit for row in rows)
        for column, limit in plain.MAX_LENGTHS.items()
    }
    assert found == expected


def test_hidden_users_lose_their_behaviours_and_the_oracle_gets_them_back(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(14))
    lengths = {}
    for oracle in (False, True):
        readers = Readers(tmp_path, cold_start={"hide_share": 1.0, "oracle": oracle})
        (batch,) = readers.reader(batch_size=14)
        lengths[oracle] = batch.unpooled["history"].lengths().tolist()
        assert batch.is_new_B.all(), "the oracle reports the same users as new"
        assert batch.is_cold_B.tolist() == (
            [i % 7 == 0 for i in range(14)] if oracle else [True] * 14
        )
    assert lengths == {False: [0] * 14, True: [min(i % 7, 4) for i in range(14)]}


def test_negatives_are_rows_of_the_item_table_spread_evenly(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(13))
    readers = Readers(tmp_path, needs_match=True)
    for batch in readers.reader(batch_size=5, negatives=True):
        match, spread = batch.match["history"], batch.unpooled["history.negatives"]
        assert batch.unpooled.keys() == [
            "history",
            "actions",
            "item",
            "item.output",
            "history.last",
            "history.negatives",
        ]
        assert spread.values().tolist() == match.negatives_K.tolist()
        assert all(2 <= x < readers.encoders.num_rows["item"] for x in match.negatives_K.tolist())
        assert spread.lengths().sum() == NUM_NEGATIVES
        assert int(spread.lengths().max() - spread.lengths().min()) <= 1
        last = [
            part.tolist()[-1] if len(part) else 0 for part in batch.unpooled["history"].to_dense()
        ]
        assert match.last_U.tolist() == batch.unpooled["history.last"].values().tolist() == last
        assert (
            batch.unpooled["item.output"].values().tolist()
            == batch.unpooled["item"].values().tolist()
        )
        assert (match.last_log_q_U.shape, match.negatives_log_q_K.shape) == (
            match.last_U.shape,
            (NUM_NEGATIVES,),
        )


def test_negatives_differ_from_step_to_step_and_rank_to_rank(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(40))
    ranks = Readers(tmp_path, needs_match=True).all_ranks(2, negatives=True)
    drawn = [
        tuple(batch.match["history"].negatives_K.tolist()) for batches in ranks for batch in batches
    ]
    assert len(set(drawn)) == len(drawn)


def rows_of_users(users: list[int]) -> list[plain.Row]:
    return [row(i, user=user) for i, user in enumerate(users)]


@files
@given(
    row_groups(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 2]),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_grouped_by_user_every_row_is_read_once_and_a_users_rows_of_a_chunk_lie_together(
    tmp_path: Path,
    parts: list[list[int]],
    world_size: int,
    num_workers: int,
    batch_size: int,
    shuffle_buffer_size: int,
    num_users: int,
    epoch: int,
) -> None:
    num_rows = sum(map(sum, parts))
    write_files(tmp_path, rows_of_users([i * 7 % num_users for i in range(num_rows)]), parts)
    readers = Readers(tmp_path, shuffle_buffer_size=shuffle_buffer_size, group_by_user=True)
    found: list[int] = []
    for rank in range(world_size):
        reader = readers.reader(rank, world_size, batch_size, num_workers=num_workers, shuffle=True)
        reader.set_epoch(epoch)
        with patch.object(
            EpochShuffle, "permutation", autospec=True, side_effect=EpochShuffle.permutation
        ) as permuting:
            batches = list(with_workers(reader, num_workers))
        sizes = [call.args[3] for call in permuting.call_args_list]
        assert sum(sizes) == sum(map(len, batches))
        users = [user for batch in batches for user in batch.users_B.tolist()]
        for stop, size in zip(accumulate(sizes), sizes, strict=True):
            chunk = users[stop - size : stop]
            assert sum(a != b for a, b in pairwise(chunk)) == len(set(chunk)) - 1, (
                "each user's rows are one run"
            )
        found += readers.numbers(batches)
        again = list(with_workers(reader, num_workers))
        assert [bits(batch) for batch in again] == [bits(batch) for batch in batches]
    assert sorted(found) == list(range(num_rows))


def test_grouped_users_and_their_rows_come_in_a_random_order_of_the_epoch(tmp_path: Path) -> None:
    write_files(tmp_path, rows_of_users([i % 8 for i in range(80)]), [[80]])
    readers, orders, first = Readers(tmp_path, group_by_user=True), set(), []
    for epoch in range(40):
        reader = readers.reader(shuffle=True, batch_size=80)
        reader.set_epoch(epoch)
        [batch] = reader
        numbers = readers.numbers([batch])
        orders.add(tuple(numbers))
        first.append(numbers[0])
        assert any(numbers[i : i + 10] != sorted(numbers[i : i + 10]) for i in range(0, 80, 10))
    assert len(orders) == 40 and len({number % 8 for number in first}) == 8


def test_grouped_batches_tell_how_many_users_they_hold_and_others_are_as_they_were(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, [row(user=i % 5, age=i % 5) for i in range(30)], [[30]])
    batches, names = {}, {}
    for grouped in (False, True):
        for shuffle in (False, True):
            reader = Readers(tmp_path, group_by_user=grouped).reader(shuffle=shuffle, batch_size=10)
            batches[grouped, shuffle], names[grouped, shuffle] = list(reader), reader.count_names
    assert names[True, True] == [*names[False, True], "distinct/user", "states/user"]
    for shuffle in (False, True):
        found = batches[True, shuffle]
        assert all(int(batch.counts[-1]) == len(batch.dedup.first_rows_U) for batch in found)  # type: ignore[union-attr]
        assert [int(batch.counts[-2]) for batch in found] == [
            len(set(batch.users_B.tolist())) for batch in found
        ]
    assert (
        sum(int(batch.counts[-1]) for batch in batches[True, True]) <= 7
    )  # two users are cut by the borders of three batches
    assert names[True, False] == names[True, True]
    unshuffled = (
        [batch.users_B.tolist() for batch in batches[grouped, False]] for grouped in (False, True)
    )
    assert next(unshuffled) == next(unshuffled), "evaluation keeps the order of the file"


def test_ungrouped_batches_keep_their_order_from_release_to_release(tmp_path: Path) -> None:
    write_files(tmp_path, some_rows(12), [[12]])
    readers = Readers(tmp_path)
    expected = np.random.default_rng([3, 0, 0, 0, 0]).permutation(12).tolist()
    assert readers.numbers(list(readers.reader(shuffle=True, seed=3))) == expected


def test_outside_training_there_are_no_negatives(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(4))
    (batch,) = Readers(tmp_path, needs_match=True).reader()
    assert batch.match["history"].negatives_K.dtype == torch.int64
    assert batch.unpooled["history.negatives"].lengths().tolist() == [0] * 4


def test_a_batch_moves_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(4))
    (batch,) = Readers(tmp_path, needs_match=True).reader(negatives=True)
    assert bits(batch.to(torch.device("cpu"))) == bits(batch)
    assert batch.to(torch.device("meta")).match["history"].negatives_K.device.type == "meta"


def test_a_reader_can_be_sent_to_a_spawned_worker(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(9))
    reader = Readers(tmp_path).reader(shuffle=True)
    assert [bits(batch) for batch in pickle.loads(pickle.dumps(reader))] == [
        bits(batch) for batch in reader
    ]


def test_fewer_rows_than_ranks(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(2))
    with pytest.raises(
        ValueError, match=rf"'{tmp_path}' holds 2 rows for 3 ranks; use fewer ranks or more rows"
    ):
        Readers(tmp_path).reader(0, 3)


def test_a_bad_row_is_named_where_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(6))
    write(tmp_path / "b.parquet", [row(9), row(10, clicked=3)])
    with pytest.raises(
        ValueError,
        match=r"b\.parquet, row group \d+: column 'clicked' should be 0 or 1, received 3 in row 1",
    ):
        list(Readers(tmp_path).reader())


def test_a_file_that_shrinks_after_it_was_opened_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(6))
    reader = Readers(tmp_path).reader()
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        list(reader)
