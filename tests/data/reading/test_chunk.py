"""Encoded rows equal a plain Python encoding; bad rows are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.data.test_fitting import hidden
from tests.support import plain
from tests.support.plain import TYPES, any_rows, encoded, row, vocabularies, write

files = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)


def chunk_of(
    folder: Path,
    train: list[plain.Row],
    rows: list[plain.Row],
    cold_start: ColdStartSettings,
    *,
    new_at_most: int = 0,
    types: pa.Schema = TYPES,
) -> Chunk:
    """``rows`` encoded with what ``train`` taught."""
    schema = plain.schema()
    write(folder / "train" / "a.parquet", train)
    write(folder / "test" / "b.parquet", rows, types=types)
    encoders = fit_encoders(Source(str(folder / "train"), schema), schema, cold_start)
    source = Source(str(folder / "test"), schema)
    encoder = ChunkEncoder(schema, encoders, cold_start, new_at_most)
    return Chunk.concatenate(
        [encoder(source.read(group), source.file(group)) for group in source.row_groups]
    )


def ids_of(chunk: Chunk, column: str) -> list[list[int]]:
    if column not in plain.MAX_LENGTHS:
        return [[x] for x in chunk.scalars_CR[plain.schema().scalars.index(column)].tolist()]
    values = iter(chunk.lists[column].values.tolist())
    return [
        [next(values) for _ in range(length)] for length in chunk.lists[column].lengths.tolist()
    ]


@files
@given(any_rows(), any_rows(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(0, 3))
def test_every_column_equals_a_plain_encoding(
    tmp_path: Path,
    train: list[plain.Row],
    rows: list[plain.Row],
    share: float,
    oracle: bool,
    new_at_most: int,
) -> None:
    """Unknown ids 0, nulls 1, lists cut; hidden behaviours gone, but not for the oracle."""
    cold_start = ColdStartSettings(hide_share=share, oracle=oracle and share > 0)
    chunk = chunk_of(tmp_path, train, rows, cold_start, new_at_most=new_at_most)
    cold = hidden(train + rows, cold_start)
    emptied = set() if oracle else cold
    known = vocabularies(train, emptied)
    for column in plain.TABLES:
        assert ids_of(chunk, column) == [encoded(row, column, known, emptied) for row in rows], (
            column
        )
    native_new = [len(row["history"] or []) <= new_at_most for row in rows]
    assert chunk.is_cold_R.tolist() == [
        new or row["user"] in emptied for new, row in zip(native_new, rows, strict=True)
    ]
    assert chunk.is_new_R.tolist() == [
        new or row["user"] in cold for new, row in zip(native_new, rows, strict=True)
    ]
    assert chunk.labels_R.tolist() == [row["clicked"] == 1 for row in rows]
    for i, column in enumerate(plain.schema().lists):
        is_hidden = [column in plain.BEHAVIOURS and row["user"] in emptied for row in rows]
        cut = [
            len(row[column] or []) > plain.MAX_LENGTHS[column] and not gone
            for row, gone in zip(rows, is_hidden, strict=True)
        ]
        assert chunk.is_cut_RL[:, i].tolist() == cut


@files
@given(any_rows(), any_rows(), st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_hidden_users_keep_their_newest_behaviours(
    tmp_path: Path,
    train: list[plain.Row],
    rows: list[plain.Row],
    keep: int,
    new_at_most: int,
    oracle: bool,
) -> None:
    """They equal rows of users who never had more, but for being counted among the new ones."""
    cold_start = ColdStartSettings(hide_share=0.5, keep=keep, oracle=oracle)
    cold = hidden(train + rows, cold_start)

    def shortened(row: plain.Row) -> plain.Row:
        gone = max(len(row["history"] or []) - keep, 0) if row["user"] in cold and not oracle else 0
        return row | {name: row[name] and row[name][gone:] for name in plain.BEHAVIOURS}

    found = chunk_of(tmp_path, train, rows, cold_start, new_at_most=new_at_most)
    parts = [[shortened(row) for row in part] for part in (train, rows)]
    expected = chunk_of(tmp_path, *parts, ColdStartSettings(), new_at_most=new_at_most)
    for column in plain.TABLES:
        assert ids_of(found, column) == ids_of(expected, column), column
    assert found.is_cold_R.tolist() == expected.is_cold_R.tolist()
    assert found.is_cut_RL.tolist() == expected.is_cut_RL.tolist()
    native_new = [len(row["history"] or []) <= new_at_most for row in rows]
    assert found.is_new_R.tolist() == [
        new or row["user"] in cold for new, row in zip(native_new, rows, strict=True)
    ]


def test_users_are_equal_where_their_keys_are(tmp_path: Path) -> None:
    chunk = chunk_of(
        tmp_path, [row()], [row(user=user) for user in (3, 2**62, 3, -1)], ColdStartSettings()
    )
    assert chunk.users_R[0] == chunk.users_R[2]
    assert len(set(chunk.users_R.tolist())) == 3


def test_numbers_are_standardised_by_the_training_data(tmp_path: Path) -> None:
    train = [row(income=1.0), row(income=3.0), row(income=None)]
    chunk = chunk_of(tmp_path, train, [row(income=4.0), row(income=None)], ColdStartSettings())
    assert chunk.numeric_RN.tolist() == [[2.0], [0.0]]


def test_a_flag_says_who_is_new(tmp_path: Path) -> None:
    schema = Schema.model_validate(
        plain.TREE | {"columns": plain.TREE["columns"] | {"fresh": {"group": "new_user"}}}
    )
    write(
        tmp_path / "a.parquet",
        [row(fresh=False, history=None, actions=None), row(fresh=True), row(fresh=False)],
        types=TYPES.append(pa.field("fresh", pa.bool_())),
    )
    source = Source(str(tmp_path), schema)
    encoder = ChunkEncoder(
        schema, fit_encoders(source, schema, ColdStartSettings()), ColdStartSettings(), 0
    )
    assert encoder(source.read(source.row_groups[0]), "a").is_cold_R.tolist() == [
        False,
        True,
        False,
    ]
    for keep, new in (
        (0, [True, True, True]),
        (2, [True, True, False]),
    ):  # the first row has nothing to keep, the second is flagged
        hiding = replace(encoder, cold_start=ColdStartSettings(hide_share=1, keep=keep))
        assert hiding(source.read(source.row_groups[0]), "a").is_cold_R.tolist() == new


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "null label": (
        {"clicked": None},
        (
            r"column 'clicked' should be 0 or 1, received null in row 1 of its row group "
            r"\(1 nulls\); drop"
        ),
    ),
    "label 2": (
        {"clicked": 2},
        "column 'clicked' should be 0 or 1, received 2 in row 1 of its row group; drop",
    ),
    "null key": (
        {"user": None},
        (
            r"column 'user' \(the group key\) should not be null, received null in row 1 "
            r"of its row group .*drop the row"
        ),
    ),
    "NaN": (
        {"income": float("nan")},
        "column 'income' should be finite, received nan in row 1 of its row group; write null",
    ),
    "infinity": (
        {"income": float("inf")},
        "column 'income' should be finite, received inf in row 1",
    ),
    "too few actions": (
        {"history": [1, 2, 3], "actions": [1]},
        "column 'actions' should be as long as 'history' .*received 1 actions on 3 items in row 1",
    ),
    "no actions": (
        {"history": [1], "actions": None},
        "column 'actions' .*received 0 actions on 1 items in row 1 of its row group; align the "
        "two lists",
    ),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/test/b\.parquet, row group 0: {message}"):
        chunk_of(tmp_path, [row()], [row(), row(**values)], ColdStartSettings())


def test_strings_where_training_had_integers_are_named(tmp_path: Path) -> None:
    types = TYPES.set(TYPES.get_field_index("history"), pa.field("history", pa.list_(pa.string())))
    with pytest.raises(
        ValueError,
        match=(
            r"b\.parquet: column 'item' looks up table 'item' with integer ids, column 'history' "
            r"in .*b\.parquet with string ids"
        ),
    ):
        chunk_of(
            tmp_path, [row()], [row(history=["1"], actions=[1])], ColdStartSettings(), types=types
        )


@files
@given(any_rows(), st.data())
def test_take_and_concatenate_move_whole_rows(
    tmp_path: Path, rows: list[plain.Row], data: st.DataObject
) -> None:
    chunk = chunk_of(tmp_path, rows, rows, ColdStartSettings())
    cut = data.draw(st.integers(0, len(rows)))
    back = Chunk.concatenate([chunk.take(slice(0, cut)), chunk.take(slice(cut, len(rows)))])
    order = data.draw(st.permutations(range(len(rows))))
    moved = back.take(np.array(order))
    assert len(moved) == len(rows)
    assert moved.users_R.tolist() == chunk.users_R[order].tolist()
    for column in plain.TABLES:
        whole = ids_of(chunk, column)
        assert ids_of(moved, column) == [whole[i] for i in order]
