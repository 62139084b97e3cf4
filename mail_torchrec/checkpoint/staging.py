"""The state of a step, copied into buffers in host memory that are made once and used again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

State = dict[str, Any]
"""Key -> ``Tensor``, ``ShardedTensor``, or :class:`Copy` of one."""
# Elements that one thread copies at a time.
_PART = 4_194_304
_THREADS = 8


class Copy:
    """A copy of this rank's shards of a table; DCP asks it what to write (``__create_write_items__``)."""

    def __init__(self, value: ShardedTensor) -> None:
        self.size = full_size(value)
        self.shards = {
            tuple(shard.metadata.shard_offsets): _buffer(shard.tensor)
            for shard in value.local_shards()
        }

    def __create_write_items__(self, key: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                MetadataIndex(key, offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(torch.Size(offsets), shard.size()),
                    TensorProperties.create_from_tensor(shard),
                    self.size,
                ),
            )
            for offsets, shard in self.shards.items()
        ]


class Stager:
    """Copies states of equal keys and shapes, always into the same buffers."""

    def __init__(self) -> None:
        self._buffers: State = {}
        self._threads = ThreadPoolExecutor(min(_THREADS, torch.get_num_threads() * 2), "stage")

    def prepare(self, state: State) -> None:
        """Makes the buffers, so that the first copy does not wait for memory."""
        self._buffers = {
            key: Copy(value) if isinstance(value, ShardedTensor) else _buffer(value)
            for key, value in state.items()
        }

    def copy(self, state: State) -> State:
        """The state as it is now; valid until the next call."""
        if self._buffers.keys() != state.keys():
            self.prepare(state)
        pairs = [pair for key, value in state.items() for pair in _pairs(self._buffers[key], value)]
        if any(source.is_cuda for _, source in pairs):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
        else:
            list(self._threads.map(lambda pair: pair[0].copy_(pair[1]), pairs))
        return self._buffers

    def close(self) -> None:
        """Ends its threads."""
        self._threads.shutdown()


def full_size(value: Any) -> torch.Size:
    """The size of a tensor, of all shards together."""
    return torch.Size(value.metadata().size) if isinstance(value, ShardedTensor) else value.size()


def local_tensors(value: Any) -> list[Tensor]:
    """What this rank holds of a tensor."""
    assert not isinstance(value, DTensor), "tables are sharded as ShardedTensor"
    return (
        [shard.tensor for shard in value.local_shards()]
        if isinstance(value, ShardedTensor)
        else [value]
    )


def _pairs(buffer: Tensor | Copy, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(target, source) of each part that one thread copies."""
    targets = list(buffer.shards.values()) if isinstance(buffer, Copy) else [buffer]
    for target, source in zip(targets, local_tensors(value), strict=True):
        source = source.detach()
        if source.dim() and source.is_contiguous() and not source.is_cuda:
            yield from zip(
                target.flatten().split(_PART), source.flatten().split(_PART), strict=True
            )
        else:
            yield target, source


def _buffer(tensor: Tensor) -> Tensor:
    """Host memory for a tensor; zeroed, so that its pages are there, and page-locked where the tensor is on a GPU."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
