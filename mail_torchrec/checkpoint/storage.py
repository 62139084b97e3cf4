"""Tensors to and from a checkpoint's folder, by ``torch.distributed.checkpoint`` (DCP); nothing that is unpickled can run code."""

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

from mail_torchrec.checkpoint.staging import Copy, State

# What the file with DCP's metadata is made of: sizes, places, names.
_HARMLESS = {
    "torch": {"Size", "device"} | {str(kind).removeprefix("torch.") for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "builtins": {"set"},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise ValueError(
                f"it names {module}.{name}, which the metadata of a checkpoint has no use for"
            )
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """DCP's reader; of the metadata it takes sizes and places, and refuses whatever else a pickle could bring."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata.

        Raises:
            ValueError: it cannot be read, or is something else.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
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


class _Planner(DefaultSavePlanner):
    """DCP's planner, which finds the shards of a :class:`Copy` too."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """What is written under an index."""
        value = self.state_dict[index.fqn]
        return (
            value.shards[tuple(index.offset or ())]
            if isinstance(value, Copy)
            else super().lookup_object(index)
        )


def write_tensors(state: State, folder: Path, group: dist.ProcessGroup) -> None:
    """Every rank writes its shards, and its part of what all ranks have alike, and waits until the disk has them."""
    # One thread: DCP loses an error of any other.
    dcp.save(
        state,
        storage_writer=FileSystemWriter(folder, thread_count=1),
        planner=_Planner(False, False),
        process_group=group,
    )


def read_tensors(
    state: State,
    folder: Path,
    group: dist.ProcessGroup | None = None,
    planner: LoadPlanner | None = None,
) -> None:
    """Reads the keys of ``state`` into its tensors, whatever the shards were; their sizes must be the saved ones.

    Args:
        state: the tensors to fill.
        folder: a checkpoint.
        group: the ranks that read together; None reads in this process alone.
        planner: says where what was read goes to; by default into the tensors.
    """
    dcp.load(
        state,
        storage_reader=_Reader(folder),
        planner=planner or DefaultLoadPlanner(False, False),
        process_group=group,
        no_dist=group is None,
    )


def saved_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Key -> size, type and shards of each tensor that a checkpoint holds.

    Raises:
        ValueError: the checkpoint's metadata is damaged, or holds something else than tensors.
    """
    found = _Reader(folder).read_metadata().state_dict_metadata
    if others := [
        key for key, value in found.items() if not isinstance(value, TensorStorageMetadata)
    ]:
        raise ValueError(f"'{folder}' should hold tensors only, {others} are something else")
    return dict(found)
