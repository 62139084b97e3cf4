"""Tensors of the Open Inference Protocol v2 as arrays: from JSON, from bytes (its binary extension, gRPC's raw contents), and back."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mail_torchrec.inference.errors import RefusedError

Array = npt.NDArray[Any]
DATATYPES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL", "object": "BYTES"}
"""dtype -> the protocol's name; elements of BYTES are bytes."""
_DTYPES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "BOOL": np.dtype("?"),
}
_KINDS = {"INT64": "i", "FP32": "if", "BOOL": "b"}


def from_json(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> Array:
    """A tensor of JSON values, nested or flat.

    Raises:
        RefusedError: values of another type or number.
    """
    _check_header(name, datatype, shape)
    if datatype == "BYTES":
        flat = (
            list(chain.from_iterable(data))
            if data and all(isinstance(part, list) for part in data)
            else data
        )
        if not all(isinstance(value, str) for value in flat):
            raise RefusedError(f"input '{name}': BYTES should be strings in JSON")
        return _shaped(name, _objects([value.encode() for value in flat]), shape)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise RefusedError(
            f"input '{name}': 'data' should be a list of {datatype}, flat or nested as 'shape' "
            f"says: {error}"
        ) from error
    if array.size and array.dtype.kind not in _KINDS[datatype]:
        raise RefusedError(
            f"input '{name}': 'data' should be {datatype}, received other values ({array.dtype})"
        )
    with np.errstate(over="ignore"):  # infinite: the caller looks for it
        return _shaped(name, array.astype(_DTYPES[datatype]), shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """A tensor of little-endian bytes; before each element of BYTES its length in four of them.

    Raises:
        RefusedError: bytes of another number.
    """
    _check_header(name, datatype, shape)
    if datatype == "BYTES":
        return _shaped(name, _objects(_split(name, data)), shape)
    dtype = _DTYPES[datatype]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise RefusedError(
            f"input '{name}': {datatype} {list(shape)} should be "
            f"{math.prod(shape) * dtype.itemsize} bytes, received {len(data)}"
        )
    if datatype == "BOOL" and max(data, default=0) > 1:
        raise RefusedError(f"input '{name}': BOOL should be bytes 0 or 1, received {max(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _split(name: str, data: bytes) -> list[bytes]:
    parts, start = [], 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "little")
        part = data[start + 4 : start + 4 + length]
        if len(data) < start + 4 or len(part) < length:
            raise RefusedError(
                f"input '{name}': an element of BYTES should be {length} bytes behind four of "
                f"length, received {len(part)}"
            )
        parts.append(part)
        start += 4 + length
    return parts


def _objects(values: list[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _check_header(name: str, datatype: str, shape: Sequence[int]) -> None:
    if len(shape) > 8 or not all(0 <= size < 2**31 for size in shape):
        raise RefusedError(
            f"input '{name}': shape should be at most 8 sizes, received {list(shape)!s:.100}"
        )
    if datatype not in DATATYPES.values():
        raise RefusedError(
            f"input '{name}': datatype should be one of {', '.join(DATATYPES.values())}, received "
            f"'{datatype}'"
        )


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    if array.size != math.prod(shape):
        raise RefusedError(
            f"input '{name}': shape {list(shape)} should have {math.prod(shape)} values, received "
            f"{array.size}"
        )
    return array.reshape(shape)
