"""A sharded checkpoint, read in one process without a process group, table by table.

A stored part (a shard as its rank wrote it) is handed on as soon as it is read, so that a table is
never in memory twice: the peak is the largest part, whatever plan and number of ranks wrote it.
"""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException

from mail_torchrec.checkpoint.folder import fault, read_sums
from mail_torchrec.checkpoint.storage import read_tensors, saved_tensors
from mail_torchrec.train.run_dir import RunDir

Take = Callable[[Tensor, int, int], None]
"""Is given a part of a table, [rows, columns], and the row and column of the table at which it
begins."""


def weights_folder(run_dir: RunDir) -> Path:
    """The checkpoint of the end of a run, every file compared with its checksum.

    Raises:
        ValueError: no trained run, or a damaged checkpoint.
    """
    run_dir.check()
    newest = run_dir.checkpoints.published()[-1]
    if faults := [
        found
        for name, expected in read_sums(newest).items()
        if (found := fault(newest, name, expected))
    ]:
        raise ValueError(
            f"'{newest}' is damaged, copy it anew or train --resume from the one before:\n  "
            + "\n  ".join(faults)
        )
    return newest


class StoredWeights:
    """The tensors of a checkpoint.

    Args:
        folder: the checkpoint.

    Raises:
        ValueError: it holds no readable metadata.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._sizes = (
            folder,
            {key: tuple(item.size) for key, item in saved_tensors(folder).items()},
        )

    def size(self, key: str) -> tuple[int, ...]:
        """The size of a tensor.

        Raises:
            ValueError: there is no such tensor.
        """
        if key not in self._sizes:
            raise ValueError(
                f"'{self._folder}' holds no '{key}': it is of another model than the "
                "configuration beside it"
            )
        return self._sizes[key]

    def load(self, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by key.

        Raises:
            ValueError: one is missing, of another size, or unreadable.
        """
        for key, value in like.items():
            if self.size(key) != tuple(value.shape):
                raise ValueError(
                    f"'{self._folder}': '{key}' should be of size {tuple(value.shape)}, found "
                    f"{self.size(key)}"
                )
        state = {key: torch.empty_like(value, device="cpu") for key, value in like.items()}
        self._read(state, None)
        return state

    def stream(self, key: str, take: Take) -> None:
        """Hands every stored part of a table to ``take``.

        Raises:
            ValueError: as :meth:`load`.
        """
        self._read(
            {key: torch.empty(1).expand(self.size(key))}, _PartsPlanner(take)
        )  # only its size is looked at

    def _read(self, state: dict[str, Tensor], planner: DefaultLoadPlanner | None) -> None:
        try:
            read_tensors(state, self._folder, planner=planner)
        except (CheckpointException, OSError, RuntimeError, UnpicklingError, EOFError) as error:
            raise ValueError(
                f"'{self._folder}' cannot be read as a checkpoint: {type(error).__name__}: {error}"
            ) from error


class _PartsPlanner(DefaultLoadPlanner):
    """Loads one tensor by handing on its parts instead of copying them together."""

    def __init__(self, take: Take) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
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
