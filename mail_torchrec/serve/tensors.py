"""Conversion between protocol tensors (Open Inference Protocol v2) and numpy arrays.

Tensors arrive as JSON values or as bytes: the REST binary extension and gRPC's raw contents.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from mail_torchrec.inference.datatypes import DATATYPES, Array
from mail_torchrec.inference.errors import InvalidRequestError

_MAX_DIMENSIONS = 8
_DTYPES = {
    datatype: np.dtype(name).newbyteorder("<")
    for name, datatype in DATATYPES.items()
    if datatype != "BYTES"
}
_JSON_TYPES: dict[str, set[type]] = {"INT64": {int}, "FP32": {int, float}, "BOOL": {bool}}
"""Types of the JSON values of a datatype."""


def datatype_of(array: Array) -> str:
    """Names the protocol's datatype of an array.

    Args:
        array: of any shape, [...].
    """
    return DATATYPES[str(array.dtype)]


def to_bytes(array: Array) -> bytes:
    """Serialises an array as the protocol's little-endian bytes.

    Args:
        array: of any shape, [...].
    """
    little_endian = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, dtype=little_endian).tobytes()


def from_json(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> Array:
    """Converts JSON values, nested or flat, to an array of ``shape``.

    Raises:
        InvalidRequestError: values of another type or number.
    """
    _check_header(name, datatype, shape)
    if datatype == "BYTES":
        return _byte_strings(name, _flat(name, data, shape)).reshape(shape)
    values = _flat(name, data, shape)
    # NumPy's own types of mixed values are no bounded work: each string takes the longest one's.
    if wrong := set(map(type, values)) - _JSON_TYPES[datatype]:
        raise InvalidRequestError(
            f"input '{name}': 'data' should be {datatype}, received other values "
            f"({min(kind.__name__ for kind in wrong)})"
        )
    try:
        with np.errstate(over="ignore"):  # the caller checks for infinity
            return np.array(values, _DTYPES[datatype]).reshape(shape)
    except OverflowError as error:
        raise InvalidRequestError(
            f"input '{name}': 'data' should be {datatype}: a number is too large for it"
        ) from error


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """Converts little-endian bytes to an array of ``shape``.

    Each element of BYTES stands behind its length, an integer of four bytes.

    Raises:
        InvalidRequestError: another number of bytes.
    """
    _check_header(name, datatype, shape)
    if datatype == "BYTES":
        return _objects(_split(name, data, shape)).reshape(shape)
    dtype = _DTYPES[datatype]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise InvalidRequestError(
            f"input '{name}': {datatype} {list(shape)} should be "
            f"{math.prod(shape) * dtype.itemsize} bytes, received {len(data)}"
        )
    if datatype == "BOOL" and max(data, default=0) > 1:
        raise InvalidRequestError(
            f"input '{name}': BOOL should be bytes 0 or 1, received {max(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Flattens JSON values, nested as ``shape`` says or flat, before an array is made of them."""
    values = data
    for depth in range(1, len(shape)):
        if not (values and all(isinstance(part, list) for part in values)):
            break
        _check_count(name, len(values), shape[:depth])
        values = list(chain.from_iterable(values))
    _check_count(name, len(values), shape)
    return values


def _byte_strings(name: str, values: list[Any]) -> Array:
    """Converts strings to BYTES."""
    if not all(isinstance(value, str) for value in values):
        raise InvalidRequestError(f"input '{name}': BYTES should be strings in JSON")
    return _objects([value.encode() for value in values])


def _split(name: str, data: bytes, shape: Sequence[int]) -> list[bytes]:
    """Splits the bytes of a BYTES tensor into its elements, no more than ``shape`` has."""
    parts: list[bytes] = []
    start, count = 0, math.prod(shape)
    while start < len(data) and len(parts) <= count:
        length = int.from_bytes(data[start : start + 4], "little")
        part = data[start + 4 : start + 4 + length]
        if len(data) < start + 4 or len(part) < length:
            raise InvalidRequestError(
                f"input '{name}': an element of BYTES should be {length} bytes behind four of "
                f"length, received {len(part)}"
            )
        parts.append(part)
        start += 4 + length
    _check_count(name, len(parts), shape)
    return parts


def _objects(values: list[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _check_header(name: str, datatype: str, shape: Sequence[int]) -> None:
    if len(shape) > _MAX_DIMENSIONS or not all(0 <= size < 2**31 for size in shape):
        raise InvalidRequestError(
            f"input '{name}': shape should be at most {_MAX_DIMENSIONS} sizes, received "
            f"{list(shape)!s:.100}"
        )
    if datatype not in DATATYPES.values():
        raise InvalidRequestError(
            f"input '{name}': datatype should be one of {', '.join(DATATYPES.values())}, received "
            f"'{datatype}'"
        )


def _check_count(name: str, count: int, shape: Sequence[int]) -> None:
    if count != math.prod(shape):
        raise InvalidRequestError(
            f"input '{name}': shape {list(shape)} should have {math.prod(shape)} values, received "
            f"{count}"
        )
