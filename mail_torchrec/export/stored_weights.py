"""Weights of a sharded checkpoint, read in one process without a process group.

A stored shard (as its rank wrote it) is passed on as soon as it is read, so that no table is in
memory twice: the peak is the largest shard, whatever plan and number of ranks wrote it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner

from mail_torchrec.checkpoint.intact import checked_model_checkpoint
from mail_torchrec.checkpoint.integrity import checkpoint_faults
from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.optim.ema import EMA_PREFIX
from mail_torchrec.train.resume import check_vocabularies
from mail_torchrec.train.run_dir import RunDir

ShardConsumer = Callable[[Tensor, int, int], None]
"""Takes a shard [rows, columns] of a table, and the row and column of the table at which it
begins."""


def weights_folder(run_dir: RunDir) -> Path:
    """Finds a run's best or else last checkpoint, and compares its files with their checksums.

    The vocabularies are compared too.

    Raises:
        ValueError: no trained run, a damaged checkpoint, or vocabularies of another run.
    """
    run_dir.check_trained()
    newest = run_dir.checkpoints.published()[-1]
    if errors := checkpoint_faults(newest):
        raise ValueError(
            f"'{newest}' is damaged, copy it anew or train --resume from the one before:\n  "
            + "\n  ".join(errors)
        )
    folder = checked_model_checkpoint(run_dir.checkpoints, newest)
    check_vocabularies(folder, run_dir)
    return folder


class StoredWeights:
    """Tensors of a checkpoint.

    Args:
        folder: folder of the checkpoint.

    Raises:
        ValueError: no readable metadata.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = read_tensor_metadata(folder)
        self._sizes = {key: tuple(item.size) for key, item in metadata.items()}

    def size(self, key: str) -> tuple[int, ...]:
        """Returns the size of a tensor.

        Raises:
            ValueError: unknown key.
        """
        if key not in self._sizes:
            raise ValueError(
                f"'{self.folder}' holds no '{key}': it is of another model than the "
                "configuration beside it"
            )
        return self._sizes[key]

    def averaged(self, key: str) -> str:
        """Returns the key of a weight's average; the key itself where it has none."""
        average = EMA_PREFIX + key.removeprefix("model.")
        return average if average in self._sizes else key

    def load(self, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loads whole tensors.

        Args:
            like: by key, tensors of the expected types and sizes, [...].

        Raises:
            ValueError: a tensor is missing, of another size, or unreadable.
        """
        for key, value in like.items():
            if self.size(key) != tuple(value.shape):
                raise ValueError(
                    f"'{self.folder}': '{key}' should be of size {tuple(value.shape)}, found "
                    f"{self.size(key)}"
                )
        state = {key: torch.empty_like(value, device="cpu") for key, value in like.items()}
        self._read(state, None)
        return state

    def stream(self, key: str, consume: ShardConsumer) -> None:
        """Passes every stored shard of a table to ``consume``.

        Raises:
            ValueError: the table is missing or unreadable.
        """
        size_only = torch.empty(1).expand(self.size(key))  # the planner reads nothing but its size
        self._read({key: size_only}, _StreamingPlanner(consume))

    def _read(self, state: dict[str, Tensor], planner: DefaultLoadPlanner | None) -> None:
        read_tensors(state, self.folder, planner=planner)


class _StreamingPlanner(DefaultLoadPlanner):
    """Loads one tensor by passing its shards on instead of copying them together."""

    def __init__(self, consume: ShardConsumer) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._consume = consume

    def resolve_tensor(self, read_item: Any) -> Any:
        """Returns the target that the reader copies a shard to."""
        return _StreamTarget(read_item.dest_offsets, read_item.lengths, self._consume)

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        """Does nothing: the shard was consumed by the copy."""


class _StreamTarget:
    """Target of the reader's copy that passes the shard on; has the methods that it calls."""

    def __init__(
        self, offsets: tuple[int, int], lengths: tuple[int, ...], consume: ShardConsumer
    ) -> None:
        self._offsets, self._lengths = offsets, torch.Size(lengths)
        self._consume = consume

    def detach(self) -> "_StreamTarget":
        return self

    def size(self) -> torch.Size:
        return self._lengths

    def copy_(self, shard: Tensor) -> None:
        self._consume(shard, *self._offsets)
