"""A sharded checkpoint, read in one process without a process group, table by table.

A stored part (a shard as its rank wrote it) is handed on as soon as it is read, so that a table is never in memory twice: the peak is the
largest part, whatever plan and number of ranks wrote it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mail_torchrec.train.run_dir import RunDir

Take = Callable[[Tensor, int, int], None]
"""Is given a part of a table, [rows, columns], and the row and column of the table at which it begins."""


def weights_folder(run_dir: RunDir) -> Path:
    """The finished run's weights.

    Raises:
        ValueError: no finished run.
    """
    run_dir.check()
    return run_dir.weights


class StoredWeights:
    """The weights in a checkpoint folder.

    Args:
        folder: what ``torch.distributed.checkpoint`` wrote.

    Raises:
        ValueError: it holds no readable metadata.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            metadata = FileSystemReader(folder).read_metadata()
        except (OSError, UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise _damaged(folder, error) from error
        self._items = {key: item for key, item in metadata.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)}

    def size(self, key: str) -> tuple[int, ...]:
        """The size of a weight.

        Raises:
            ValueError: there is no such weight.
        """
        if key not in self._items:
            raise ValueError(f"'{self._folder}' holds no weight '{key}': its configuration is another model's")
        return tuple(self._items[key].size)

    def load(self, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole weights by key.

        Raises:
            ValueError: one is missing, of another size, or unreadable.
        """
        for key, value in like.items():
            if self.size(key) != tuple(value.shape):
                raise ValueError(
                    f"'{self._folder}': weight '{key}' should be {tuple(value.shape)}, found {self.size(key)}; whose run is it?"
                )
        state = {key: torch.empty_like(value, device="cpu") for key, value in like.items()}
        self._read(state, DefaultLoadPlanner())
        return state

    def stream(self, key: str, take: Take) -> None:
        """Hands every stored part of a table to ``take``.

        Raises:
            ValueError: as :meth:`load`.
        """
        size = self.size(key)
        self._read({key: torch.empty(1).expand(size)}, _PartsPlanner(take))  # only its size is looked at

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Which of the keys are not there."""
        return sorted(set(keys) - self._items.keys())

    def _read(self, state: dict[str, Tensor], planner: DefaultLoadPlanner) -> None:
        try:
            dcp.load(state, checkpoint_id=self._folder, planner=planner, no_dist=True)
        except (CheckpointException, OSError, RuntimeError, UnpicklingError, EOFError) as error:
            raise _damaged(self._folder, error) from error


class _PartsPlanner(DefaultLoadPlanner):
    """Loads one tensor by handing on its parts instead of copying them together."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self._take = take

    def resolve_tensor(self, read_item: Any) -> Any:
        """Where the reader copies a part to."""
        return _Destination(read_item.dest_offsets, read_item.lengths, self._take)

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        """Nothing is left to do."""


class _Destination:
    """What the reader asks of the tensor that it copies a part to."""

    def __init__(self, offsets: tuple[int, int], lengths: tuple[int, ...], take: Take) -> None:
        self._offsets, self._lengths, self._take = offsets, torch.Size(lengths), take

    def detach(self) -> "_Destination":
        return self

    def size(self) -> torch.Size:
        return self._lengths

    def copy_(self, part: Tensor) -> None:
        self._take(part, *self._offsets)


def _damaged(folder: Path, error: BaseException) -> ValueError:
    return ValueError(f"'{folder}' cannot be read as a checkpoint (damaged, or not copied whole?): {type(error).__name__}: {error}")
