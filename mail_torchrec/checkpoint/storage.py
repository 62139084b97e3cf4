"""Reads and writes the tensors of a checkpoint by ``torch.distributed.checkpoint`` (DCP).

The unpickler of DCP's metadata admits a few harmless classes, so that no file can run code.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
    LoadPlanner,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from mail_torchrec.checkpoint.staging import StagedShards, StateDict

# Classes that DCP's metadata consists of: sizes, places, names.
_ALLOWED_CLASSES = {
    "torch": {"Size", "device"}
    | {
        str(value).removeprefix("torch.")
        for value in vars(torch).values()
        if isinstance(value, torch.dtype)
    },
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "BytesStorageMetadata",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "builtins": {"set"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles the allowed classes alone."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED_CLASSES.get(module, ()):
            raise ValueError(
                f"it names {module}.{name}, which the metadata of a checkpoint has no use for"
            )
        return super().find_class(module, name)


class _SafeReader(FileSystemReader):
    """Reads a checkpoint as DCP does, but unpickles its metadata with the allowed classes alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads the metadata.

        Raises:
            ValueError: the file cannot be read, or holds something else.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (
            OSError,
            ValueError,
            EOFError,
            AttributeError,
            IndexError,
            KeyError,
            pickle.UnpicklingError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read as the metadata of a checkpoint: {error}"
            ) from error
        if not isinstance(metadata, Metadata):
            raise ValueError(
                f"{path} should hold the metadata of a checkpoint, it holds "
                f"{type(metadata).__name__}"
            )
        return metadata


class _SavePlanner(DefaultSavePlanner):
    """Plans a write as DCP does, and finds the buffers of :class:`StagedShards` too."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Returns the tensor that is written under an index."""
        value = self.state_dict[index.fqn]
        return (
            value.shards[tuple(index.offset or ())]
            if isinstance(value, StagedShards)
            else super().lookup_object(index)
        )


def write_tensors(state: StateDict, folder: Path, group: dist.ProcessGroup) -> None:
    """Writes a state from all ranks, and waits until it is on the disk.

    Every rank writes its shards, and a part of the tensors that are equal on all ranks.
    """
    # One thread: DCP loses an error of any other.
    dcp.save(
        state,
        storage_writer=FileSystemWriter(folder, thread_count=1),
        planner=_SavePlanner(False, False),
        process_group=group,
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
    """
    dcp.load(
        state,
        storage_reader=_SafeReader(folder),
        planner=planner or DefaultLoadPlanner(False, False),
        process_group=group,
        no_dist=group is None,
    )


def read_tensor_metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Reads key, size, type and shards of each tensor of a checkpoint.

    Raises:
        ValueError: the checkpoint's metadata is damaged, or holds other values than tensors.
    """
    found = _SafeReader(folder).read_metadata().state_dict_metadata
    if others := [
        key for key, value in found.items() if not isinstance(value, TensorStorageMetadata)
    ]:
        raise ValueError(f"'{folder}' should hold tensors only, {others} are something else")
    return dict(found)
