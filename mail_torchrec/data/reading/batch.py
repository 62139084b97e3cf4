"""What the rows of a batch became: ids by key, numbers, labels."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from mail_torchrec.data.reading.ipc import pack, unpack


@dataclass
class MatchIds:
    """Sampled negatives of one sequence; ``K`` ids shared by the batch, 0 outside training."""

    last_U: Tensor
    """Row of each user's newest behaviour in the item table (0 where there is none)."""
    negatives_K: Tensor
    last_log_q_U: Tensor
    negatives_log_q_K: Tensor


@dataclass
class DedupIndices:
    """Which rows hold the same of one user."""

    first_rows_U: Tensor
    """The first row of each user, rising."""
    inverse_indices_B: Tensor
    """The place of each row's user in ``first_rows_U``."""


@dataclass
class Batch(Pipelineable):
    """One rank's rows of one step.

    ``pooled`` and ``unpooled`` are jagged by key and row. Two rows, keys ``age`` (one id) and
    ``tags`` (a list)::

                 row 0      row 1
        age      [3]        [5]
        tags     [7, 8]     []           lengths = [1, 1, 2, 0]   values = [3, 5, 7, 8]

    The sampled negatives stand under a key of ``unpooled`` as well, dealt evenly to the rows: they
    belong to the batch, not to a row, and only their order counts.

    Where rows share users, the keys of the user's side (attributes, behaviours) have ids in the
    first row of each user alone, and nothing in the others: so they are looked up once a user, and
    all ranks still have keys of equally many rows.
    """

    pooled: KeyedJaggedTensor
    unpooled: KeyedJaggedTensor
    numeric_BN: Tensor
    labels_B: Tensor
    conversions_B: Tensor
    """1 where the row was clicked and converted, else 0; all 0 where the schema has no conversion
    column (float)."""
    weights_B: Tensor
    """Weight of each row in losses and figures: 1, or 0 on a row that only fills a batch up
    (float)."""
    users_B: Tensor
    """The group key as an int64 (a hash), for GAUC."""
    is_cold_B: Tensor
    """Rows whose behaviours the model must do without (Eq. 9)."""
    is_new_B: Tensor
    """Rows reported as new users': hidden by the simulated cold start or without history; the
    oracle reports them too."""
    match: dict[str, MatchIds]
    counts: Tensor
    """What was met on the way (unknown ids a column, rows cut a list), in the order of
    ``Reader.count_names``."""
    dedup: DedupIndices | None = None
    """Which rows share a user; None: none do."""

    @property
    def is_cold_U(self) -> Tensor:
        """``is_cold_B`` of each user; a row is a user where none is shared."""
        return self.of_users(self.is_cold_B)

    @property
    def weights_U(self) -> Tensor:
        """The weight of each user's rows together."""
        if self.dedup is None:
            return self.weights_B
        return self.weights_B.new_zeros(len(self.dedup.first_rows_U)).index_add(
            0, self.dedup.inverse_indices_B, self.weights_B
        )

    def of_users(self, x_B: Tensor) -> Tensor:
        """Of values that a user's rows have in common, one a user."""
        return x_B if self.dedup is None else x_B.index_select(0, self.dedup.first_rows_U)

    def __len__(self) -> int:
        return int(self.labels_B.shape[0])

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch on another device."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that ``stream`` uses the batch."""
        self._map(lambda part: (part.record_stream(stream), part)[1])

    def _map(self, function: Callable[[Any], Any]) -> Self:
        mapped: Self = map_parts(self, function)
        return mapped


def map_parts(part: Any, function: Callable[[Any], Any]) -> Any:
    """The same dataclass or dict, ``function`` of every tensor in it; None stays None."""
    if part is None:
        return None
    if isinstance(part, dict):
        return {key: map_parts(value, function) for key, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        return replace(
            part,
            **{
                field.name: map_parts(getattr(part, field.name), function) for field in fields(part)
            },
        )
    return function(part)


def _sent(batch: Batch) -> tuple[Any, ...]:
    return _received, tuple(map_parts(getattr(batch, field.name), pack) for field in fields(batch))


def _received(*parts: Any) -> Batch:
    return Batch(*(map_parts(part, unpack) for part in parts))


ForkingPickler.register(Batch, _sent)
