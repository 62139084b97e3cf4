"""Large row groups are decoded piece by piece, with the batches and messages of whole ones."""

from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data import source as source_module
from mail_torchrec.data.reading.chunk import ChunkEncoder
from mail_torchrec.data.reading.partition import ConsumedSteps
from mail_torchrec.data.source import Source
from tests.data.reading.test_partition import in_turns
from tests.data.reading.test_reader import Readers, bits, files, row_groups, write_files
from tests.support import plain
from tests.support.plain import row, some_rows, write


@files
@given(
    row_groups(),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 2]),
    st.integers(1, 5),
    st.integers(1, 30),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_pieces_give_the_batches_of_whole_row_groups(
    tmp_path: Path,
    parts: list[list[int]],
    piece_rows: int,
    world_size: int,
    num_workers: int,
    batch_size: int,
    shuffle_buffer_size: int,
    shuffle: bool,
    by_user: bool,
    data: st.DataObject,
) -> None:
    rows = [part | {"income": i / 3} for i, part in enumerate(some_rows(sum(map(sum, parts))))]
    write_files(tmp_path, rows, parts)
    done, found = None, []
    for size in (1_000, piece_rows):
        with patch.object(source_module, "PIECE_ROWS", size):
            readers = Readers(
                tmp_path, shuffle_buffer_size=shuffle_buffer_size, group_by_user=by_user
            )
            ranks = [
                readers.reader(
                    rank, world_size, batch_size, num_workers=num_workers, shuffle=shuffle
                )
                for rank in range(world_size)
            ]
            # Other layouts before: what they left of a row group has gaps.
            if done is None:
                done = data.draw(st.integers(0, len(readers.reader(batch_size=2))))
            before = ConsumedSteps(layout=readers.reader(batch_size=2).layout, steps=done)
            found.append([])
            for reader in ranks:
                reader.set_epoch(1, [before] if shuffle else [])
                found[-1].append([bits(batch) for batch in in_turns(reader, num_workers)])
            found[-1].append(readers.encoders.scales["income"])
    assert found[0] == found[1]


def test_the_pieces_of_a_row_group_are_read_and_encoded_once(tmp_path: Path) -> None:
    write_files(tmp_path, some_rows(40), [[25, 15]])
    readers = Readers(tmp_path, shuffle_buffer_size=6)
    encoded, real = [], ChunkEncoder.__call__

    def encode(self: ChunkEncoder, table: object, file: str) -> object:
        encoded.append(len(table))  # type: ignore[arg-type]
        return real(self, table, file)  # type: ignore[arg-type]

    with (
        patch.object(source_module, "PIECE_ROWS", 10),
        patch.object(Source, "pieces", autospec=True, side_effect=Source.pieces) as reading,
        patch.object(ChunkEncoder, "__call__", encode),
    ):
        assert sum(map(len, readers.reader(shuffle=True))) == 40
        assert sorted(encoded) == [5, 5, 10, 10, 10]
        assert reading.call_count == 2
        encoded.clear()
        assert sum(map(len, readers.reader(1, 2))) == 20
        assert encoded == [5, 10, 5], "pieces before the rank's rows are skipped"


@pytest.mark.parametrize("step", ["fit", "read"])
def test_a_bad_row_of_a_piece_is_named_by_its_number_in_the_row_group(
    tmp_path: Path, step: str
) -> None:
    bad = {"income": float("nan")} if step == "fit" else {"clicked": 2}
    write(tmp_path / "a.parquet", [row(i, **(bad if i == 17 else {})) for i in range(20)], [2, 18])
    with (
        patch.object(source_module, "PIECE_ROWS", 4),
        pytest.raises(ValueError, match=r"a.parquet, row group 1: column .* in row 15 of its row"),
    ):
        list(Readers(tmp_path).reader())


def test_pieces_have_the_rows_and_types_of_the_whole_row_group(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", some_rows(11), [1, 10])
    source = Source(str(tmp_path), plain.schema())
    with patch.object(source_module, "PIECE_ROWS", 4):
        pieces = list(source.pieces(source.row_groups[1]))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    whole = source.read(source.row_groups[1])
    assert all(piece.schema == whole.schema for piece in pieces)
    assert [r for piece in pieces for r in piece.to_pylist()] == whole.to_pylist()
    assert whole["age"].to_pylist() == pq.read_table(tmp_path / "a.parquet")["age"].to_pylist()[1:]
