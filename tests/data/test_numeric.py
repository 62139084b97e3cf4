"""Numeric columns: values, transforms and scales; and the values that are refused."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.numeric import Moments, NumericScale, numeric_values
from mail_torchrec.data.schema.schema import Transform


@given(st.lists(st.none() | st.floats(-1e300, 1e300), max_size=5))
def test_numbers_keep_their_nulls_as_nan(values: list[float | None]) -> None:
    found = numeric_values(
        pa.chunked_array([pa.array(values, pa.float64())]), Transform.NONE, file="f", name="n"
    )
    assert [None if math.isnan(x) else x for x in found.tolist()] == values


@given(st.lists(st.none() | st.integers(0, 2**63 - 1), max_size=5))
def test_log_of_numbers(values: list[int | None]) -> None:
    found = numeric_values(
        pa.chunked_array([pa.array(values, pa.int64())]), Transform.LOG, file="f", name="n"
    )
    assert found.tolist() == pytest.approx(
        [math.nan if x is None else math.log1p(x) for x in values], nan_ok=True
    )


@pytest.mark.parametrize(
    ("values", "transform", "message"),
    [
        (
            [0.0, math.nan],
            "none",
            "should be finite, received nan in row 1 .*write null where a value is unknown",
        ),
        ([None, math.inf], "none", "should be finite, received inf in row 1"),
        ([-math.inf], "log", "should be finite, received -inf in row 0"),
        (
            [1.0, -2.5],
            "log",
            (
                r"should be >= 0 for transform 'log', received -2\.5 in row 1 of its row "
                r"group; use transform 'none' or null"
            ),
        ),
    ],
)
def test_a_bad_number_is_named(values: list[float | None], transform: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"f\.parquet: column 'price' {message}"):
        numeric_values(
            pa.chunked_array([pa.array(values, pa.float64())]),
            Transform(transform),
            file="f.parquet",
            name="price",
        )


@pytest.mark.parametrize("value", [0.1, 2e-153, 1e100])
def test_a_constant_but_for_rounding_is_a_constant_and_what_lies_far_off_stays_finite(
    value: float,
) -> None:
    moments = Moments()
    moments.add(np.array([value, value, value * (1 + 1e-15)]))
    assert moments.scale().deviation == 1.0
    assert np.isfinite(moments.scale().apply(np.array([value, -1.7e308, 1.7e308]))).all()


def test_a_missing_number_becomes_the_mean() -> None:
    assert NumericScale(3.0, 2.0).apply(np.array([3.0, np.nan, 7.0])).tolist() == [0.0, 0.0, 2.0]
