"""Batch of one rank: jagged ids by feature key, numbers, labels, sampled negatives.

Shapes: ``B`` rows, ``U`` deduplicated users (B where none are deduplicated), ``N`` numeric columns,
``K`` sampled negatives, ``E`` elements of a vector.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, is_dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from mail_torchrec.data.reading.ipc import rebuild_tensor, reduce_tensor
from mail_torchrec.data.reading.shape_buckets import ShapeBuckets


@dataclass
class MatchIds:
    """Last behaviours and sampled negatives of one sequence's match loss.

    The batch shares its K negatives; outside training K is 0. The log-q values correct the sampled
    softmax (``data/negatives.py``).
    """

    last_U: Tensor
    """Row of each user's newest behaviour in the item table (0 where there is none)."""
    negatives_K: Tensor
    """Rows of the negatives in the item table."""
    last_log_q_U: Tensor
    """Log of how often each ``last_U`` is expected among the negatives."""
    negatives_log_q_K: Tensor
    """Log of how often each ``negatives_K`` is expected among them."""

    def filled_up(self, buckets: ShapeBuckets) -> "MatchIds":
        """Returns them with surplus users, who have no behaviours."""
        last_U, last_log_q_U = (buckets.fill_up(x_U, 0) for x_U in (self.last_U, self.last_log_q_U))
        return replace(self, last_U=last_U, last_log_q_U=last_log_q_U)


@dataclass
class RowSets:
    """Indices of cold and warm rows (or users), in rising order (int64).

    They are found where a batch is made, so that no step waits for a GPU to count them. Where their
    numbers are rounded up (``Batch.buckets``), surplus indices stand behind: one more than the last
    row, which is none.
    """

    cold: Tensor
    """Rows that the model scores without usable behaviours [rows]."""
    warm: Tensor
    """The others [rows]."""
    weighted: Tensor
    """Warm rows with a weight in the losses [rows]."""

    @staticmethod
    def of(is_cold_R: Tensor, weights_R: Tensor) -> "RowSets":
        """Finds the sets of rows (or users).

        Args:
            is_cold_R: cold rows (bool).
            weights_R: weight of each row.
        """
        sets = is_cold_R, ~is_cold_R, ~is_cold_R & (weights_R > 0)
        return RowSets(*(torch.nonzero(is_one_R).squeeze(1) for is_one_R in sets))

    def filled_up(self, buckets: ShapeBuckets, num_rows: int) -> "RowSets":
        """Returns the sets with surplus indices.

        Args:
            buckets: sizes of the sets.
            num_rows: index of no row.
        """
        sets = self.cold, self.warm, self.weighted
        return RowSets(*(buckets.fill_up(rows, num_rows) for rows in sets))


@dataclass
class DedupIndices:
    """Deduplicated users of a batch (RecD, Zhao et al. 2023)."""

    first_rows_U: Tensor
    """First row of each user, in rising order."""
    inverse_indices_B: Tensor
    """Index of each row's user in ``first_rows_U``."""
    sets: RowSets
    """Cold and warm users."""
    num_behaviours: dict[str, int]
    """Sequence -> behaviours of all rows, those of a user counted in each of the user's rows."""
    num_surplus: int = 0
    """Surplus users behind the others, who have no rows. Their first row is that of another."""

    def filled_up(self, buckets: ShapeBuckets) -> "DedupIndices":
        """Returns the users with surplus ones."""
        first_rows_U = buckets.fill_up(self.first_rows_U, 0)
        return replace(
            self,
            first_rows_U=first_rows_U,
            sets=self.sets.filled_up(buckets, len(first_rows_U)),
            num_surplus=len(first_rows_U) - len(self.first_rows_U),
        )


@dataclass
class Batch(Pipelineable):
    """Rows of one rank in one step.

    ``pooled`` and ``unpooled`` are jagged by feature key and row. Two rows, keys ``age`` (one id)
    and ``tags`` (a list)::

                 row 0      row 1
        age      [3]        [5]
        tags     [7, 8]     []           lengths = [1, 1, 2, 0]   values = [3, 5, 7, 8]

    The sampled negatives stand under a key of ``unpooled`` as well, spread evenly over the rows:
    they belong to the batch, not to a row, and only their order counts.

    Where users are deduplicated, user-side keys (attributes, behaviours) have ids in the first row
    of each user alone and none in the others: so each is looked up once a user, and the keys of all
    ranks still have equally many rows.
    """

    pooled: KeyedJaggedTensor
    unpooled: KeyedJaggedTensor
    numeric_BN: Tensor
    """Standardised numeric columns (float)."""
    labels_B: Tensor
    """1 where the row was clicked, else 0 (float)."""
    conversions_B: Tensor
    """1 where the row was clicked and converted, else 0; all 0 where the schema has no conversion
    column (float)."""
    weights_B: Tensor
    """Weight of each row in losses and metrics: its own or 1, and 0 on a row that only fills the
    batch up, which is the last one of unshuffled rows (float)."""
    users_B: Tensor
    """Hash of the group key (int64), for GAUC."""
    is_cold_B: Tensor
    """Rows that the model must score without usable behaviours (Eq. 9)."""
    is_new_B: Tensor
    """Rows reported as new users': hidden by the simulated cold start, or without history in the
    data. The oracle reports them too."""
    match: dict[str, MatchIds]
    """Last behaviours and negatives by sequence; empty where the tower has no match loss."""
    counts: Tensor
    """Counts of the rows (unknown ids a column, cut lists, ...), [len(``Reader.count_names``)]."""
    sets: RowSets
    """Cold and warm rows."""
    dedup: DedupIndices | None = None
    """Deduplicated users; None where users are not deduplicated."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Standardised vectors of each vector column: those of attributes once a user [U, E], the
    others [B, E]."""

    task_labels: dict[str, Tensor] = field(default_factory=dict)
    """Labels [B] of each column of group ``task_label``, NaN where they are null (float)."""
    is_new_item_B: Tensor | None = None
    """Rows reported as new items'; None where nothing says which items are new."""
    is_cold_item_B: Tensor | None = None
    """Rows whose item is new by the rule, or its id withheld; the oracle's are not. None likewise.
    """
    item_frequency_B: Tensor | None = None
    """Count of the row's item in the training data over the mean count of the items (float). None
    likewise, and where ids are not counted."""

    buckets: ShapeBuckets | None = None
    """Sizes to which the numbers of users and behaviours and of the indices of the sets are rounded
    up; None where all numbers are as the rows have them."""

    def filled_up(self, buckets: ShapeBuckets, user_side: Collection[str]) -> "Batch":
        """Returns the batch with surplus users and indices, which count in no loss.

        The jagged tensors stay as they are.

        Args:
            buckets: sizes of their numbers.
            user_side: names of the columns with one entry a user.
        """
        sets = self.sets.filled_up(buckets, len(self))
        if self.dedup is None:
            return replace(self, buckets=buckets, sets=sets)
        vectors = {
            name: buckets.fill_up(vectors_RE, 0) if name in user_side else vectors_RE
            for name, vectors_RE in self.vectors.items()
        }
        return replace(
            self,
            buckets=buckets,
            sets=sets,
            dedup=self.dedup.filled_up(buckets),
            vectors=vectors,
            match={name: ids.filled_up(buckets) for name, ids in self.match.items()},
        )

    @property
    def is_cold_U(self) -> Tensor:
        """``is_cold_B`` of each user."""
        return self.per_user(self.is_cold_B)

    @property
    def weights_U(self) -> Tensor:
        """Sum of the weights of each user's rows."""
        if self.dedup is None:
            return self.weights_B
        zeros_U = self.weights_B.new_zeros(len(self.dedup.first_rows_U))
        return zeros_U.index_add(0, self.dedup.inverse_indices_B, self.weights_B)

    @property
    def num_surplus(self) -> int:
        """Number of users without rows, who only fill up."""
        return 0 if self.dedup is None else self.dedup.num_surplus

    @property
    def sets_U(self) -> RowSets:
        """Cold and warm users."""
        return self.sets if self.dedup is None else self.dedup.sets

    def num_behaviours(self, sequence: str) -> tuple[int, int]:
        """Returns the behaviours of all users, and those of all rows, known without a GPU.

        With ``buckets`` both are rounded up.
        """
        place = self.unpooled.keys().index(sequence)
        of_users = self.unpooled.length_per_key()[place]
        of_rows = of_users if self.dedup is None else self.dedup.num_behaviours[sequence]
        if self.buckets is None:
            return of_users, of_rows
        return self.buckets.size(of_users), self.buckets.size(of_rows)

    def per_user(self, x_B: Tensor) -> Tensor:
        """Takes values that all rows of a user share once a user.

        Args:
            x_B: [B, ...].

        Returns:
            [U, ...]
        """
        return x_B if self.dedup is None else x_B.index_select(0, self.dedup.first_rows_U)

    def __len__(self) -> int:
        return int(self.labels_B.shape[0])

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copies the batch to a device."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copies the batch to page-locked memory."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that ``stream`` uses the batch."""
        self._map(lambda part: (part.record_stream(stream), part)[1])

    def _map(self, function: Callable[[Any], Any]) -> Self:
        mapped: Self = map_tensors(self, function)
        return mapped


def map_tensors(part: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to every tensor of nested dataclasses and dicts; the rest stays.

    Args:
        part: a dataclass, a dict, a tensor [...], a KeyedJaggedTensor, a number, or None.
        function: of a tensor or KeyedJaggedTensor.
    """
    if part is None or isinstance(part, int):
        return part
    if isinstance(part, dict):
        return {key: map_tensors(value, function) for key, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        values = {
            field.name: map_tensors(getattr(part, field.name), function) for field in fields(part)
        }
        return replace(part, **values)
    return function(part)


def _reduce_batch(batch: Batch) -> tuple[Any, ...]:
    parts = (map_tensors(getattr(batch, field.name), reduce_tensor) for field in fields(batch))
    return _rebuild_batch, tuple(parts)


def _rebuild_batch(*parts: Any) -> Batch:
    return Batch(*(map_tensors(part, rebuild_tensor) for part in parts))


ForkingPickler.register(Batch, _reduce_batch)
