"""Reads and writes the tensors of a checkpoint by ``torch.distributed.checkpoint`` (DCP).

DCP writes its files and plans who reads what. The numbers themselves are read here, from the places
that ``tensors.json`` names (:mod:`.tensor_index`): nothing is unpickled, so no file can run code.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemWriter,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    StorageReader,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view
from torch.futures import Future

from mail_torchrec.checkpoint.staging import StagedShards, StateDict
from mail_torchrec.checkpoint.tensor_index import (
    INDEX,
    ITEM_BYTES,
    DtypeName,
    StoredChunk,
    StoredTensor,
    TensorIndex,
    read_index,
)
from mail_torchrec.utils.run_files import write_file, writing
from mail_torchrec.utils.safe_paths import open_regular

_DTYPES: dict[DtypeName, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_AROUND = 4096
"""Bytes that an archive of ``torch.save`` has at most behind the numbers of its only tensor."""


class _SavePlanner(DefaultSavePlanner):
    """Plans a write as DCP does, and finds the buffers of :class:`StagedShards` too."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Returns the tensor that is written under an index, row by row."""
        value = self.state_dict[index.fqn]
        found = (
            value.shards[tuple(index.offset or ())]
            if isinstance(value, StagedShards)
            else super().lookup_object(index)
        )
        return found.detach().contiguous()


class _IndexedWriter(FileSystemWriter):
    """Writes as DCP does, and ``tensors.json`` beside its metadata."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the tensors of this rank."""
        with writing(Path(self.path)):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: Any) -> None:
        """Writes metadata and index, on one rank, after all ranks have written their tensors."""
        folder = Path(self.path)
        with writing(folder):
            super().finish(metadata, results)
        places = {result.index: result.storage_data for rank in results for result in rank}
        index = _index_of(metadata, places, folder)
        write_file(folder / INDEX, index.model_dump_json() + "\n")


class _NumbersReader(StorageReader):
    """Reads the numbers of tensors from the places in ``tensors.json``, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._index = folder, read_index(folder)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Does nothing: a reader is of one checkpoint."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Describes the tensors to DCP."""
        return Metadata(_tensor_metadata(self._index))

    def set_up_storage_reader(self, *_: Any, **__: Any) -> None:
        """Does nothing: the index is read already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Returns the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Returns the plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Accepts no other checkpoint than that of the constructor."""
        return False

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan of this rank asks for."""
        by_file: dict[str, list[tuple[ReadItem, StoredTensor, StoredChunk]]] = {}
        places = {
            key: {chunk.offsets: chunk for chunk in tensor.chunks}
            for key, tensor in self._index.tensors.items()
        }
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR, "the index has tensors alone"
            index = item.storage_index
            chunk = places[index.fqn][tuple(index.offset or ())]
            stored = self._index.tensors[index.fqn]
            by_file.setdefault(chunk.file, []).append((item, stored, chunk))
        for name, parts in by_file.items():
            with open_regular(self._folder / name) as file:
                for item, stored, chunk in parts:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_read_part(file, stored, chunk, item))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def write_tensors(state: StateDict, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Writes a state from all ranks, and waits until it is on the disk.

    Every rank writes its shards, and a part of the tensors that are equal on all ranks.

    Args:
        state: key -> tensor of this rank.
        folder: folder to write into.
        group: the ranks that write together; None writes from this process alone.
    """
    # One thread: DCP loses an error of any other. Copying ahead would open CUDA on the first GPU,
    # whatever the device of this rank.
    dcp.save(
        state,
        storage_writer=_IndexedWriter(folder, thread_count=1, per_thread_copy_ahead=0),
        planner=_SavePlanner(False, False),
        process_group=group,
        no_dist=group is None,
    )


def read_tensors(
    state: StateDict,
    folder: Path,
    group: dist.ProcessGroup | None = None,
    planner: LoadPlanner | None = None,
) -> None:
    """Reads tensors from a checkpoint, whatever their shards were when they were written.

    Args:
        state: key -> tensor to fill, of the saved global size.
        folder: a checkpoint.
        group: the ranks that read together; None reads in this process alone.
        planner: decides where values are read to; by default into the tensors.

    Raises:
        ValueError: on every rank; the index is damaged, or a tensor is missing, of another size, or
            cannot be read.
    """
    try:
        dcp.load(
            state,
            storage_reader=_NumbersReader(folder),
            planner=planner or DefaultLoadPlanner(False, False),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:  # DCP gives every rank the errors of all ranks
        faults = dict.fromkeys(str(cause[0]) for cause in error.failures.values())
        raise ValueError(
            f"'{folder}' cannot be read as a checkpoint: {'; '.join(faults)}"
        ) from error


def read_tensor_metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Reads key, size, type and shards of each tensor of a checkpoint.

    Raises:
        ValueError: the checkpoint's index is missing or damaged.
    """
    return _tensor_metadata(read_index(folder))


def _tensor_metadata(index: TensorIndex) -> dict[str, Any]:
    return {
        key: TensorStorageMetadata(
            TensorProperties(_DTYPES[tensor.dtype]),
            torch.Size(tensor.size),
            [
                ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
                for chunk in tensor.chunks
            ],
        )
        for key, tensor in index.tensors.items()
    }


def _index_of(metadata: Metadata, places: Mapping[MetadataIndex, Any], folder: Path) -> TensorIndex:
    """Builds the index of a folder that DCP has written; empty shards are left out."""
    tensors: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        files: dict[str, BufferedReader] = {}
        for key, item in metadata.state_dict_metadata.items():
            assert isinstance(item, TensorStorageMetadata), f"'{key}' should be a tensor"
            chunks = []
            for chunk in item.chunks:
                if not math.prod(chunk.sizes):
                    continue
                entry = places[MetadataIndex(key, chunk.offsets)]
                name = entry.relative_path
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("rb"))
                num_bytes = math.prod(chunk.sizes) * item.properties.dtype.itemsize
                position = _first_number(files[name], entry.offset, entry.length, num_bytes)
                chunks.append(
                    StoredChunk(
                        file=name,
                        position=position,
                        offsets=tuple(chunk.offsets),
                        sizes=tuple(chunk.sizes),
                    )
                )
            dtype = _NAMES[item.properties.dtype]
            tensors[key] = StoredTensor(dtype=dtype, size=tuple(item.size), chunks=tuple(chunks))
    return TensorIndex(tensors=tensors)


def _first_number(file: BufferedReader, offset: int, length: int, num_bytes: int) -> int:
    """Finds the first number of a tensor in its entry, which is a ZIP archive of ``torch.save``.

    Args:
        file: file that holds the entry.
        offset: place of the entry in the file.
        length: bytes of the entry.
        num_bytes: bytes of the tensor's numbers.
    """
    archive = torch._C.PyTorchFileReader(_create_file_view(file, offset, length))
    first = int(archive.get_record_offset("data/0"))
    assert 0 <= length - first - num_bytes < _AROUND  # torch 2.11 has no get_record_size
    return offset + first


def _read_part(
    file: BufferedReader, tensor: StoredTensor, chunk: StoredChunk, item: ReadItem
) -> Tensor:
    """Reads the rows of a chunk that are wanted, and no others."""
    first, count = (item.storage_offsets[0], item.lengths[0]) if chunk.sizes else (0, 1)
    row_bytes = math.prod(chunk.sizes[1:]) * ITEM_BYTES[tensor.dtype]
    numbers = torch.empty(count * row_bytes, dtype=torch.uint8)
    file.seek(chunk.position + first * row_bytes)
    if file.readinto(numbers.numpy()) != len(numbers):
        raise ValueError(f"'{file.name}' ends within a tensor")
    if tensor.dtype == "bool":
        numbers.ne_(0)
    rows = numbers.view(_DTYPES[tensor.dtype]).view(count, *chunk.sizes[1:])
    if not chunk.sizes:
        return rows.view(())
    return narrow_tensor_by_index(rows, (0, *item.storage_offsets[1:]), item.lengths)
