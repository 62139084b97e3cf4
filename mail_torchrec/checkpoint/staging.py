"""Staging of a step's state in host-memory buffers that are allocated once and reused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
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

from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

StateDict = dict[str, Any]
"""Key -> ``Tensor``, ``ShardedTensor``, or :class:`StagedShards`."""
# Elements that one thread copies at a time.
_CHUNK_ELEMENTS = 4_194_304
_THREADS = 8
# Of cudaHostRegister: locked for all devices.
_PORTABLE = 1
# Bytes from which on a buffer of a GPU's tensor is page-locked. Pages are locked once: no two
# buffers may share one.
_LOCKED_BYTES = 2**20


class StagedShards:
    """Buffers for this rank's shards of a table, in the form that DCP writes.

    DCP calls ``__create_write_items__`` to learn what to write.

    Args:
        value: the sharded table ``[rows, columns]``.
    """

    def __init__(self, value: ShardedTensor) -> None:
        self.size = global_size(value)
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
    """Copies states with equal keys and shapes into one set of buffers."""

    def __init__(self) -> None:
        self._buffers: StateDict = {}
        # Addresses of buffers with locked pages.
        self._locked: list[int] = []
        self._has_told = False
        self._threads = ThreadPoolExecutor(min(_THREADS, torch.get_num_threads() * 2), "stage")

    def prepare(self, state: StateDict) -> None:
        """Allocates the buffers, so that the first copy does not wait for memory."""
        self._release()
        self._buffers = {
            key: StagedShards(value) if isinstance(value, ShardedTensor) else _buffer(value)
            for key, value in state.items()
        }
        pairs = [pair for key, value in state.items() for pair in _pairs(self._buffers[key], value)]
        for target, source in pairs:
            if source.is_cuda and target.nbytes >= _LOCKED_BYTES:
                self._lock_pages(target)

    def copy(self, state: StateDict) -> StateDict:
        """Copies the state as it is now; the copy is valid until the next call."""
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
        """Ends the copying threads, and gives the buffers back."""
        self._threads.shutdown()
        self._release()

    def _lock_pages(self, buffer: Tensor) -> None:
        """Locks the pages of a buffer, any shape ``[...]``, so that a GPU writes it by itself.

        torch's own page-locked memory is rounded up to a power of two, and kept to the end of the
        process.
        """
        address = buffer.data_ptr()
        code = int(torch.cuda.cudart().cudaHostRegister(address, buffer.nbytes, _PORTABLE))
        if code == 0:
            self._locked.append(address)
        elif not self._has_told:
            self._has_told = True
            logger.warning(
                "checkpoints are copied slowly: CUDA cannot lock %.1f MiB of host memory (error "
                "%d); is the host's memory full, or ulimit -l too low?",
                buffer.nbytes / 2**20,
                code,
            )

    def _release(self) -> None:
        """Gives the buffers back; their pages are unlocked before."""
        for address in self._locked:
            torch.cuda.cudart().cudaHostUnregister(
                address
            )  # after an error of CUDA it does nothing
        self._locked.clear()
        self._buffers = {}


def global_size(value: Any) -> torch.Size:
    """Returns the size of a tensor, of a sharded one over all shards."""
    return torch.Size(value.metadata().size) if isinstance(value, ShardedTensor) else value.size()


def local_tensors(value: Any) -> list[Tensor]:
    """Lists this rank's shards of a tensor, each of any shape ``[...]``."""
    assert not isinstance(value, DTensor), "tables are sharded as ShardedTensor"
    return (
        [shard.tensor for shard in value.local_shards()]
        if isinstance(value, ShardedTensor)
        else [value]
    )


def _pairs(buffer: Tensor | StagedShards, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (target, source) of each part that one thread copies."""
    targets = list(buffer.shards.values()) if isinstance(buffer, StagedShards) else [buffer]
    for target, source in zip(targets, local_tensors(value), strict=True):
        source = source.detach()
        if source.dim() and source.is_contiguous() and not source.is_cuda:
            yield from zip(
                target.flatten().split(_CHUNK_ELEMENTS),
                source.flatten().split(_CHUNK_ELEMENTS),
                strict=True,
            )
        else:
            yield target, source


def _buffer(tensor: Tensor) -> Tensor:
    """Allocates host memory of a tensor's shape: zeroed now, a large one on pages of its own."""
    if tensor.nbytes < _LOCKED_BYTES or not tensor.is_cuda:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    pages = torch.frombuffer(mmap(-1, tensor.nbytes), dtype=tensor.dtype)
    return pages.view(tensor.shape).zero_()
