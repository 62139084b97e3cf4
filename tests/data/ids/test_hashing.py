"""hash64 equals its written definition, whatever way the values are stored."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.ids.hashing import _fnv1a, hash64

MASK = 2**64 - 1


def fnv1a(data: bytes) -> int:
    """FNV-1a, byte by byte."""
    h = 14695981039346656037
    for byte in data:
        h = ((h ^ byte) * 1099511628211) & MASK
    return h


def mix(z: int) -> int:
    """splitmix64's finaliser."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(value: object, salt: str) -> int:
    """The definition in plain Python."""
    if value is None:
        word = 0x9E3779B97F4A7C15
    elif isinstance(value, int):
        word = value & MASK
    else:
        assert isinstance(value, (str, bytes))
        word = fnv1a(value.encode() if isinstance(value, str) else value)
    return mix(word ^ fnv1a(salt.encode()))


def test_core_equals_the_published_vectors() -> None:
    """Vectors of draft-eastlake-fnv and of the authors' test suite."""
    texts = [b"", b"a", b"foobar", b"chongo was here!\n"]
    assert _fnv1a(pa.array(texts, pa.large_binary())).tolist() == [
        0xCBF29CE484222325,
        0xAF63DC4C8601EC8C,
        0x85944171F73967E8,
        0x46810940EFF5F915,
    ]


@pytest.mark.parametrize("num_long", [0, 1, 31, 32, 33, 60])
def test_values_of_any_length_have_the_hash_of_the_definition(num_long: int) -> None:
    """Many at a byte position are hashed at once, few one by one."""
    long = [bytes(range(i, 200)) * (1 + i % 3) for i in range(num_long)]
    values = [None, b"", *long, b"ab", *(b"x" * i for i in range(40))]
    array = pa.array([b"before", *values], pa.large_binary())[1:]
    assert hash64(array, "s").tolist() == [reference(value, "s") for value in values]
    assert hash64(pa.array(["y" * 70_000]), "s")[0] == reference("y" * 70_000, "s")


def test_finaliser_equals_the_published_stream() -> None:
    """splitmix64 seeded with 0 begins with these: the finaliser of its constant's multiples."""
    stream = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix((0x9E3779B97F4A7C15 * k) & MASK) for k in (1, 2, 3)] == stream
    states = np.array([(0x9E3779B97F4A7C15 * k) & MASK for k in (1, 2, 3)], np.uint64) ^ np.uint64(
        fnv1a(b"s")
    )
    assert hash64(pa.array(states), "s").tolist() == stream


def test_golden_values_never_change() -> None:
    """A changed hash would move every id of every saved model; the reference computed these."""
    assert hash64(pa.array([0, 1, -124, None]), "mail").tolist() == [
        reference(v, "mail") for v in (0, 1, -124, None)
    ]
    assert hash64(pa.array([7]), "mail").tolist() == [GOLDEN_INT_7]
    assert hash64(pa.array(["Zürich"]), "mail").tolist() == [GOLDEN_ZURICH]


GOLDEN_INT_7 = 0xFF9E87DBFD4188AE
GOLDEN_ZURICH = 0x43AC5D165344F6A5


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))),
    st.text(max_size=5),
    st.integers(0, 3),
)
def test_integers(values: list[int | None], salt: str, start: int) -> None:
    """Whole, sliced, chunked and dictionary-encoded columns hash alike."""
    check(values, pa.int64(), salt, start)


@given(st.lists(st.one_of(st.none(), st.text(max_size=12))), st.text(max_size=5), st.integers(0, 3))
def test_strings(values: list[str | None], salt: str, start: int) -> None:
    """The same for strings of unequal lengths, in UTF-8."""
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        check(values, kind, salt, start)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=12))))
def test_binary(values: list[bytes | None]) -> None:
    """Bytes need not be UTF-8."""
    for kind in (pa.binary(), pa.large_binary()):
        check(values, kind, "s", 1)


def check(values: Sequence[object], kind: pa.DataType, salt: str, start: int) -> None:
    """Compare every way to store the values with the reference."""
    expected = [reference(value, salt) for value in values]
    array = pa.array(values, kind)
    assert hash64(array, salt).dtype == np.uint64
    assert hash64(array, salt).tolist() == expected
    assert hash64(array.slice(start), salt).tolist() == expected[start:]
    twice = pa.array([*values, *values], kind)
    assert (
        hash64(twice.slice(start, len(values)), salt).tolist()
        == [*expected, *expected][start : start + len(values)]
    )
    assert (
        hash64(pa.chunked_array([array.slice(0, start), array.slice(start)], kind), salt).tolist()
        == expected
    )
    if kind not in (pa.string_view(),):
        encoded = array.dictionary_encode()
        assert hash64(encoded, salt).tolist() == expected
        assert hash64(encoded.slice(start), salt).tolist() == expected[start:]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64()])
def test_signed_widths_agree(kind: pa.DataType) -> None:
    """A sentinel keeps its hash when a column is rewritten wider."""
    assert hash64(pa.array([-124, -1, 0, 127], kind), "s").tolist() == [
        reference(v, "s") for v in (-124, -1, 0, 127)
    ]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()])
def test_unsigned_widths_agree(kind: pa.DataType) -> None:
    """Up to the greatest value of the width."""
    top = 2**kind.bit_width - 1
    assert hash64(pa.array([0, 200, top, None], kind), "s").tolist() == [
        reference(v, "s") for v in (0, 200, top, None)
    ]


def test_other_types() -> None:
    """Booleans as integers, all-null, null dictionary entries, fixed-size binary, no chunks."""
    assert hash64(pa.array([True, False, None]), "s").tolist() == [
        reference(v, "s") for v in (1, 0, None)
    ]
    assert hash64(pa.nulls(2), "s").tolist() == [reference(None, "s")] * 2
    entries = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None], pa.int8()), pa.array(["a", None])
    )
    assert hash64(entries, "s").tolist() == [reference(v, "s") for v in ("a", None, None)]
    assert hash64(pa.array([b"ab", None], pa.binary(2)), "s").tolist() == [
        reference(v, "s") for v in (b"ab", None)
    ]
    assert hash64(pa.chunked_array([], pa.int32()), "s").tolist() == []


@pytest.mark.parametrize(
    "values",
    [pa.array([1.0]), pa.array([[1]]), pa.array([0], pa.timestamp("s")), pa.chunked_array([[1.5]])],
)
def test_types_without_a_stable_pattern_are_refused(values: pa.Array) -> None:
    """The message says what to do."""
    with pytest.raises(ValueError, match=r"received type '.+'; cast it to int64 or string"):
        hash64(values, "s")


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_uniform(kind: pa.DataType) -> None:
    """Consecutive ids fill 64 buckets evenly, by high and by low bits (chi-square, 63 degrees)."""
    hashes = hash64(pa.array(np.arange(64_000)).cast(kind), "uniform")
    for bucket in (hashes >> np.uint64(58), hashes % np.uint64(64)):
        counts = np.bincount(bucket.astype(np.int64), minlength=64)
        assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert len(np.unique(hashes)) == 64_000
    agreement = (hashes ^ hash64(pa.array(np.arange(64_000)).cast(kind), "other")) >> np.uint64(63)
    assert abs(agreement.mean() - 0.5) < 0.01
