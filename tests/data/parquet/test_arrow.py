"""Arrow columns to NumPy: ids in plain form, labels; and the values that are refused."""

import math

import pyarrow as pa
import pytest

from mail_torchrec.data.parquet.arrow import binary, plain_ids


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.dictionary(pa.int16(), pa.uint8())],
    ids=str,
)
def test_integers_become_int64(kind: pa.DataType) -> None:
    ids = plain_ids(
        pa.chunked_array([pa.array([1, None], kind), pa.array([3, 1], kind)]), file="f", name="n"
    )
    assert (ids.type, ids.to_pylist()) == (pa.int64(), [1, None, 3, 1])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_strings_become_large_strings(kind: pa.DataType) -> None:
    ids = plain_ids(
        pa.chunked_array([pa.array(["b", None], kind), pa.array(["", "b"], kind)]),
        file="f",
        name="n",
    )
    assert (ids.type, ids.to_pylist()) == (pa.large_string(), ["b", None, "", "b"])


def test_booleans_become_0_and_1() -> None:
    assert plain_ids(pa.chunked_array([[True, None, False]]), file="f", name="n").to_pylist() == [
        1,
        None,
        0,
    ]


def test_an_id_above_int64_is_named() -> None:
    column = pa.chunked_array([pa.array([1, 2**63], pa.uint64())])
    with pytest.raises(
        ValueError,
        match=(
            r"f\.parquet: column 'n' should fit into signed 64-bit integers: "
            rf".*{2**63}.*store its ids as strings"
        ),
    ):
        plain_ids(column, file="f.parquet", name="n")


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1, 1], pa.int8()), ([False, True, True], pa.bool_()), ([0.0, 1.0, 1.0], pa.float32())],
    ids=str,
)
def test_labels_of_any_type(values: list[float], kind: pa.DataType) -> None:
    assert binary(pa.chunked_array([pa.array(values, kind)]), file="f", name="n").tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, None, None], r"received null in row 1 of its row group \(2 nulls\)"),
        ([1, 2], "received 2 in row 1 of its row group"),
        ([-1, 0], "received -1 in row 0"),
        ([1, 0.5], "received 0.5 in row 1"),
        ([math.nan], "received nan in row 0"),
        ([2**53 + 1], r"received 9\.0072e\+15 in row 0"),
    ],
)
def test_a_bad_label_is_named(values: list[float | None], message: str) -> None:
    with pytest.raises(
        ValueError,
        match=(
            rf"f\.parquet: column 'clicked' should be 0 or 1, {message}.*; drop such rows "
            r"or repair them"
        ),
    ):
        binary(pa.chunked_array([pa.array(values)]), file="f.parquet", name="clicked")
