"""Stable 64-bit hash of column values, the same on every machine and in every version.

It decides which table row a hashed id gets and which users a simulated cold start hides, so a
serving system in another language must be able to repeat it. The whole definition, all arithmetic
modulo 2^64::

    fnv1a(bytes):
        h = 0xcbf29ce484222325
        for each byte b:  h = (h xor b) * 0x100000001b3
    mix(z):
        z = (z xor z >> 30) * 0xbf58476d1ce4e5b9
        z = (z xor z >> 27) * 0x94d049bb133111eb
        return z xor z >> 31
    hash64(x) = mix(word(x) xor fnv1a(UTF-8 of the salt))

    word(integer) = its two's complement in 64 bits
                    (a boolean is 0 or 1; an int8 and an int64 of one value agree)
    word(string)  = fnv1a(its UTF-8 bytes)            (binary values: their bytes)
    word(null)    = 0x9e3779b97f4a7c15

    cross64()          = 0
    cross64(..., x, y) = mix(cross64(..., x) xor hash64(y)), with the salt "cross"

Sources: FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/; the finaliser is splitmix64's (Steele,
Lea and Flood, OOPSLA 2014).

Shapes: ``N`` values.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
NULL_WORD = 0x9E3779B97F4A7C15

_WORD = 2**64 - 1
_FEW = 32
"""Number of values from which NumPy's loop over byte positions is faster than Python's."""
_Words = NDArray[np.uint64]


def hash64(values: pa.Array | pa.ChunkedArray, salt: str) -> _Words:
    """Hashes every value of a column; the module's docstring is the definition.

    Args:
        values: [N], integers of any width, booleans, strings, binary, all-null, or a dictionary of
            those; they may be slices and chunked.
        salt: names the purpose, so that two hashes of one column are independent of each other.

    Returns:
        One uint64 a value, [N].

    Raises:
        ValueError: the values are of a type without a stable bit pattern (floats, decimals, times,
            lists, ...).
    """
    if isinstance(values, pa.ChunkedArray):
        chunks = [_words(chunk) for chunk in values.chunks]
        words = np.concatenate([_words(pa.array([], values.type)), *chunks])
    else:
        words = _words(values)
    return mix64(words ^ _fnv1a(pa.array([salt.encode()], pa.large_binary())))


def cross64(columns: Sequence[pa.Array | pa.ChunkedArray]) -> _Words:
    """Hashes the values of several columns together; the module's docstring is the definition.

    Args:
        columns: each [N], of the types of :func:`hash64`, in the order of the cross.

    Returns:
        One uint64 a row, [N].

    Raises:
        ValueError: as :func:`hash64`.
    """
    crossed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        crossed = mix64(crossed ^ hash64(column, "cross"))
    return crossed


def hash64_of(text: str, salt: str) -> int:
    """Hashes one string as :func:`hash64` does."""
    return int(hash64(pa.array([text], pa.string()), salt)[0])


def _words(values: pa.Array) -> _Words:
    """Returns the 64-bit word of every value, before salt and finaliser."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _dictionary_words(values)
    if pa.types.is_null(kind):
        return np.full(len(values), NULL_WORD, np.uint64)
    if pa.types.is_boolean(kind):
        words = _integer_words(values.cast(pa.uint8()))
    elif pa.types.is_integer(kind):
        words = _integer_words(values)
    elif _is_text(kind):
        words = _fnv1a(values.cast(pa.large_binary()))
    else:
        raise ValueError(
            f"hash64 should receive integers, booleans, strings or bytes, received type '{kind}'; "
            "cast it to int64 or string"
        )
    words[_is_null(values)] = NULL_WORD
    return words


def _is_text(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return any(
        test(kind) for test in (*tests, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    )


def _is_null(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _dictionary_words(values: pa.DictionaryArray) -> _Words:
    """Hashes each dictionary entry once and takes the entries' words; one more is for nulls."""
    entries = np.append(_words(values.dictionary), np.uint64(NULL_WORD))
    indices = pc.fill_null(values.indices.cast(pa.int64()), len(entries) - 1)
    words: _Words = entries[indices.to_numpy(zero_copy_only=False)]
    return words


def _integer_words(values: pa.Array) -> _Words:
    numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    # int64 -> uint64 and every narrower signed type -> uint64 extend the sign: two's complement
    # modulo 2^64.
    return np.asarray(numbers).astype(np.uint64)


def _fnv1a(values: pa.Array) -> _Words:
    """Returns FNV-1a of every value of a large_binary array.

    The loop is over byte positions, for all values that are long enough at once. A position costs
    some microseconds whatever their number, so the ends of the few longest are hashed one by one.
    """
    words = np.full(len(values), FNV_OFFSET, np.uint64)
    _, offsets_buffer, data_buffer = values.buffers()
    if len(values) == 0 or data_buffer is None:
        return words
    offsets = np.frombuffer(offsets_buffer, np.int64)[
        values.offset : values.offset + len(values) + 1
    ]
    data = np.frombuffer(data_buffer, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    active = np.flatnonzero(lengths > 0)
    position = 0
    while active.size > _FEW:
        words[active] = (words[active] ^ data[starts[active] + position]) * np.uint64(FNV_PRIME)
        position += 1
        active = active[lengths[active] > position]
    for i in active:
        rest = data[starts[i] + position : starts[i] + lengths[i]].tobytes()
        words[i] = _fnv1a_of(rest, int(words[i]))
    return words


def _fnv1a_of(data: bytes, word: int) -> int:
    """Returns FNV-1a of bytes that come after those with the hash ``word``."""
    for byte in data:
        word = (word ^ byte) * FNV_PRIME & _WORD
    return word


def mix64(words: _Words) -> _Words:
    """Applies splitmix64's finaliser.

    It is a bijection of 64-bit words after which every output bit depends on every input bit.

    Args:
        words: [N].
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
