"""A tensor on its way to another process: plain bytes in the narrowest type that holds them.

As shared memory, torch's way, each tensor costs a file descriptor and a connection: more than to
copy what a batch holds.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_NARROW = [(np.iinfo(kind).min, np.iinfo(kind).max, kind) for kind in (np.int8, np.int16, np.int32)]


class _Values(NamedTuple):
    """A tensor."""

    narrow: Any
    """A NumPy array of its shape."""
    dtype: torch.dtype


class _Keyed(NamedTuple):
    """A KeyedJaggedTensor."""

    keys: list[str]
    values: _Values
    lengths: _Values


def pack(part: Tensor | KeyedJaggedTensor) -> Any:
    """What to send of a tensor on the CPU; integers take as few bytes as the largest of them needs."""
    if isinstance(part, KeyedJaggedTensor):
        assert part.weights_or_none() is None
        return _Keyed(part.keys(), pack(part.values()), pack(part.lengths()))
    values = part.numpy()
    return _Values(
        _narrowed(values) if values.dtype == np.int64 and values.size else values, part.dtype
    )


def unpack(part: Any) -> Tensor | KeyedJaggedTensor:
    """What :func:`pack` was given."""
    if isinstance(part, _Keyed):
        return KeyedJaggedTensor(part.keys, unpack(part.values), lengths=unpack(part.lengths))
    return torch.from_numpy(part.narrow).to(part.dtype)


def _narrowed(values: Any) -> Any:
    low, high = values.min(), values.max()
    return values.astype(
        next((kind for least, most, kind in _NARROW if least <= low and high <= most), np.int64),
        copy=False,
    )
