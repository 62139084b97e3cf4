"""Logical types: one plain form of a value, whatever Arrow container stores it."""

import decimal
from typing import Any

import pyarrow as pa
import pytest

from mail_torchrec.data.parquet.logical_types import (
    LogicalType,
    element_type,
    logical_type,
    plain_ids,
    plain_lists,
    plain_values,
)

INTEGERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()),
    *(pa.uint64(), pa.decimal32(5, 0), pa.decimal64(12, 2), pa.decimal128(20, 0)),
    *(pa.decimal256(50, 3), pa.dictionary(pa.int8(), pa.int16())),
]
TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
    *(pa.binary_view(), pa.dictionary(pa.int8(), pa.string())),
    pa.dictionary(pa.int32(), pa.large_string()),
]


def stored(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Stores values as a type, decimals and dictionaries included."""
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else decimal.Decimal(v) for v in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values).cast(kind)


def dictionary_of_views() -> pa.Array:
    """Dictionary of string views, which delta-rs and DataFusion make (Arrow casts none)."""
    views = pa.array(["x", None, "y"]).cast(pa.string_view())
    return pa.DictionaryArray.from_arrays(pa.array([2, 0, None, 1], pa.int8()), views)


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_of_every_container_are_int64(kind: pa.DataType) -> None:
    column = pa.chunked_array([stored([7, 1, None], kind).slice(1), stored([3, None], kind)])
    assert logical_type(kind) is LogicalType.INTEGER
    values = plain_values(column, LogicalType.INTEGER)
    assert (values.type, values.to_pylist()) == (pa.int64(), [1, None, 3, None])


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_text_of_every_container_is_large_string(kind: pa.DataType) -> None:
    column = pa.chunked_array([stored(["z", "", None], kind).slice(1), stored(["日本"], kind)])
    assert logical_type(kind) is LogicalType.STRING
    values = plain_values(column, LogicalType.STRING)
    assert (values.type, values.to_pylist()) == (pa.large_string(), ["", None, "日本"])


def test_a_dictionary_of_views_is_read_by_its_values() -> None:
    column = dictionary_of_views()
    assert logical_type(column.type) is LogicalType.STRING
    assert plain_values(column, LogicalType.STRING).to_pylist() == ["y", "x", None, None]


@pytest.mark.parametrize(
    ("storage", "kind", "expected"),
    [
        (pa.array([1, 0, None], pa.int8()), pa.bool8(), LogicalType.INTEGER),
        (pa.array(["{}", None, "[]"]), pa.json_(), LogicalType.STRING),
    ],
    ids=str,
)
def test_an_extension_type_is_read_by_its_storage(
    storage: pa.Array, kind: pa.DataType, expected: LogicalType
) -> None:
    column = pa.ExtensionArray.from_storage(kind, storage)
    assert logical_type(column.type) is expected
    assert plain_values(column, expected).to_pylist() == storage.to_pylist()


_SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _storage(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind == pa.date32() else pa.int64()


@pytest.mark.parametrize(
    "kind",
    [pa.time64("us"), pa.duration("s"), pa.struct([("a", pa.int8())]), pa.uuid(), pa.binary(2)],
    ids=str,
)
def test_structs_and_bytes_of_fixed_size_are_of_no_type(kind: pa.DataType) -> None:
    assert logical_type(kind) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((pa.timestamp(unit), 1_700_000_123 * scale) for unit, scale in _SCALES.items()),
        *((pa.timestamp(unit, "Asia/Tokyo"), -5 * scale) for unit, scale in _SCALES.items()),
        (pa.timestamp("ns"), -1),
        (pa.date32(), 19_700),
        (pa.date64(), -86_400_000),
    ],
    ids=str,
)
def test_times_are_instants_whatever_their_unit_and_zone(kind: pa.DataType, value: int) -> None:
    column = pa.chunked_array([pa.array([None, value], pa.int64()).cast(_storage(kind)).cast(kind)])
    if kind == pa.date32():
        expected = value * 86_400.0
    else:
        unit = "ms" if kind == pa.date64() else kind.unit
        expected = value // max(_SCALES[unit] // 10**6, 1) / min(_SCALES[unit], 10**6)
    assert logical_type(kind) is LogicalType.TIME
    assert plain_values(column, LogicalType.NUMBER).to_pylist() == [None, expected]
    times = plain_values(column, LogicalType.TIME)
    assert times.type == pa.timestamp("us")
    assert times.cast(pa.int64()).to_pylist() == [None, round(expected * 1e6)]
    with pytest.raises(ValueError, match="should hold ids"):
        plain_ids(column, file="f", name="c")


@pytest.mark.parametrize("value", [2**62, -(2**62), 253_402_300_800, -62_135_596_801])
def test_times_outside_of_the_calendar_are_refused(value: int) -> None:
    column = pa.chunked_array([pa.array([value], pa.timestamp("s"))])
    with pytest.raises(ValueError, match="should hold times of the years 1 to 9999"):
        plain_values(column, LogicalType.TIME)


LISTS = [pa.ListArray, pa.LargeListArray, pa.ListViewArray, pa.LargeListViewArray]


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([9, 2, 1, 2, None, 1], pa.int16()), LogicalType.INTEGER),
        (pa.array(["9", "2", "1", "2", None, "1"]).cast(pa.string_view()), LogicalType.STRING),
        (pa.nulls(6), LogicalType.INTEGER),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_lists_of_every_container_are_large_lists(
    kind: Any, values: pa.Array, wanted: LogicalType
) -> None:
    is_view = "View" in kind.__name__
    sizes = [pa.array([1, 1, 0, 0, 3], pa.int64() if "Large" in kind.__name__ else pa.int32())]
    offsets = pa.array([1, 2, 3, 3, 3] if is_view else [1, 2, 3, 3, 3, 6], sizes[0].type)
    mask = pa.array([False, False, True, False, False])
    lists = kind.from_arrays(offsets, *sizes[: int(is_view)], values, mask=mask)
    column = pa.chunked_array([lists.slice(1), lists.slice(0, 1)])
    assert element_type(column.type) == values.type
    two, one, *_ = values.to_pylist()[1:]
    assert plain_lists(column, wanted).to_pylist() == [[one], [], [], [two, None, one], [two]]


def test_a_null_of_a_fixed_size_list_is_an_empty_list() -> None:
    column = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2))
    assert plain_lists(column, LogicalType.INTEGER).to_pylist() == [[1, 2], [], [3, None]]


def test_lists_of_dictionaries_are_read_by_their_values() -> None:
    values = pa.array(["b", None, "a"]).dictionary_encode()
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3]), values)
    assert plain_lists(column, LogicalType.STRING).to_pylist() == [["b", None], [], ["a"]]


def test_a_column_of_the_null_type_is_nulls_or_empty_lists_of_the_type_that_is_wanted() -> None:
    assert plain_values(pa.nulls(2), LogicalType.STRING).type == pa.large_string()
    assert plain_lists(pa.nulls(2), LogicalType.INTEGER).to_pylist() == [[], []]


@pytest.mark.parametrize("kind", [pa.float64(), pa.int32(), pa.dictionary(pa.int8(), pa.int64())])
def test_nulls_of_another_type_are_nulls(kind: pa.DataType) -> None:
    column = pa.nulls(2, kind)
    assert plain_values(column, LogicalType.STRING).to_pylist() == [None, None]


def test_numbers_may_be_integers_decimals_and_booleans() -> None:
    for column in (
        pa.array([2, None]),
        pa.array([decimal.Decimal("2.00"), None]),
        pa.array([2, None], pa.float16()),
    ):
        assert plain_values(column, LogicalType.NUMBER).to_pylist() == [2.0, None]
    assert plain_values(pa.array([True]), LogicalType.NUMBER).to_pylist() == [1.0]


@pytest.mark.parametrize(
    ("column", "wanted", "message"),
    [
        (pa.array(["1"]), LogicalType.INTEGER, "should be integer values, found string"),
        (pa.array([1]), LogicalType.STRING, "should be string values, found int64"),
        (pa.array([1.0]), LogicalType.INTEGER, "should be integer values, found double"),
        (pa.array([True]), LogicalType.INTEGER, "should be integer values, found bool"),
        (pa.array([decimal.Decimal("1.5")]), LogicalType.INTEGER, "should be whole and fit"),
        (pa.array([b"\xff"]), LogicalType.STRING, "should be text in UTF-8"),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(
    column: pa.Array, wanted: LogicalType, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plain_values(column, wanted)


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


def test_ids_of_strings_keep_their_text() -> None:
    column = pa.chunked_array([pa.array(["01", None], pa.string_view())])
    assert plain_ids(column, file="f", name="n").to_pylist() == ["01", None]


def test_numbers_are_no_ids() -> None:
    with pytest.raises(ValueError, match=r"f: column 'n' should hold ids .*, found double"):
        plain_ids(pa.chunked_array([[1.5]]), file="f", name="n")
