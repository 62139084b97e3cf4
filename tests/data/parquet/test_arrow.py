"""Arrow columns to NumPy: ids in plain form, labels; and the values that are refused."""

import math

import pyarrow as pa
import pytest

from mail_torchrec.data.parquet.arrow import binary


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
