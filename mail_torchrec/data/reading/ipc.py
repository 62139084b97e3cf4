"""Serialization of tensors that reader processes send to the training process.

A tensor is sent as plain bytes of the narrowest integer type that holds its values. As shared
memory, torch's way, each tensor costs a file descriptor and a connection: more than a copy of what
a batch holds.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_NARROW = [(np.iinfo(kind).min, np.iinfo(kind).max, kind) for kind in (np.int8, np.int16, np.int32)]


class _ReducedTensor(NamedTuple):
    """Serialized form of a tensor."""

    narrow: Any
    """NumPy array of the tensor's shape, in a narrower type perhaps."""
    dtype: torch.dtype


class _ReducedKeyedJagged(NamedTuple):
    """Serialized form of a KeyedJaggedTensor."""

    keys: list[str]
    values: _ReducedTensor
    lengths: _ReducedTensor
    weights: _ReducedTensor | None
    length_per_key: list[int] | None


def reduce_tensor(part: Tensor | KeyedJaggedTensor) -> Any:
    """Returns the picklable form of a tensor on the CPU.

    Args:
        part: a tensor of any shape [...], or a KeyedJaggedTensor.
    """
    if isinstance(part, KeyedJaggedTensor):
        weights = part.weights_or_none()
        return _ReducedKeyedJagged(
            part.keys(),
            reduce_tensor(part.values()),
            reduce_tensor(part.lengths()),
            None if weights is None else reduce_tensor(weights),
            part.length_per_key_or_none(),
        )
    values = part.numpy()
    if values.dtype == np.int64 and values.size:
        values = _narrowed(values)
    return _ReducedTensor(values, part.dtype)


def rebuild_tensor(part: Any) -> Tensor | KeyedJaggedTensor:
    """Returns the tensor that :func:`reduce_tensor` was given."""
    if isinstance(part, _ReducedKeyedJagged):
        return KeyedJaggedTensor(
            part.keys,
            rebuild_tensor(part.values),
            weights=None if part.weights is None else rebuild_tensor(part.weights),
            lengths=rebuild_tensor(part.lengths),
            length_per_key=part.length_per_key,
        )
    return torch.from_numpy(part.narrow).to(part.dtype)


def _narrowed(values: Any) -> Any:
    low, high = values.min(), values.max()
    kinds = (kind for least, most, kind in _NARROW if least <= low and high <= most)
    return values.astype(next(kinds, np.int64), copy=False)
