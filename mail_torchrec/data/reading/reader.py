"""Reader of one rank's batches: an epoch's rows in chunks, prefetched and cut into batches."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

from torch.utils.data import IterableDataset, get_worker_info

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Bools, Ints
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.reading.collate import BatchCollator
from mail_torchrec.data.reading.epoch import EpochRows
from mail_torchrec.data.reading.partition import (
    ConsumedSteps,
    RankInfo,
    ReaderLayout,
    num_steps,
)
from mail_torchrec.data.reading.permutation import FeaturePermutation
from mail_torchrec.data.reading.prefetch import Prefetcher
from mail_torchrec.data.reading.shape_buckets import ShapeBuckets
from mail_torchrec.data.reading.shuffle import EpochShuffle
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source


@dataclass(frozen=True)
class _ShuffledChunk:
    """Rows of a chunk in the order of the epoch; ``R`` rows."""

    chunk: Chunk
    dedup_keys_R: Ints
    is_real_R: Bools


@dataclass(frozen=True)
class _PrefetchedChunks:
    """Chunks of an iteration, one of which is read in advance."""

    epoch: int
    consumed: tuple[ConsumedSteps, ...]
    """Position in the epoch at which the iteration begins."""
    steps: list[range]
    """Steps of each chunk."""
    chunks: Prefetcher[range, _ShuffledChunk]

    def begins_at(self, epoch: int, consumed: Sequence[ConsumedSteps]) -> bool:
        """Returns True where the iteration begins at this position."""
        return (self.epoch, self.consumed) == (epoch, tuple(consumed))


class Reader(IterableDataset[Batch]):
    """Iterates over the batches of one rank.

    Args:
        source: opened files.
        schema: their columns.
        encoders: of ids and numbers.
        feature_tables: feature keys of the batches.
        settings: cold start, shuffle buffer, new-user rule, reader processes, buckets.
        rank_info: rank to read for, and number of ranks.
        batch_size: maximum number of rows of a batch.
        shuffle: the rows are of training, shuffled by (seed, epoch); otherwise they come in the
            order of the files, and their positions are a constant.
        seed: of shuffle and negatives.
        samplers: samplers of the negatives of each sequence; none outside training.

    Raises:
        ValueError: fewer rows than ranks; while iterating, any value that cannot be trained on.
    """

    def __init__(
        self,
        source: Source,
        schema: Schema,
        encoders: Encoders,
        feature_tables: FeatureTables,
        settings: DataSettings,
        *,
        rank_info: RankInfo,
        batch_size: int,
        shuffle: bool,
        seed: int,
        samplers: dict[str, NegativeSampler] | None = None,
    ) -> None:
        if source.num_rows < rank_info.world_size:
            raise ValueError(
                f"'{source.path}' holds {source.num_rows} rows for {rank_info.world_size} ranks; "
                "use fewer ranks or more rows"
            )
        self._source, self._schema = source, schema
        self._encode = ChunkEncoder(
            schema,
            encoders,
            settings.cold_start.of_training if shuffle else settings.cold_start.of_test,
            settings.new_user_max_behaviours,
            reads_positions=shuffle,
            new_items=settings.new_items,
        )
        self.has_weights = source.has_weights
        """Whether the rows have weights of their own."""
        self._collate = BatchCollator(
            schema,
            encoders.tables,
            feature_tables,
            samplers or {},
            group_by_user=settings.group_by_user,
            buckets=ShapeBuckets.of(settings.shape_buckets),
        )
        is_of_training = source.split is not None  # validation rows of the training files
        self.negatives_kept = (
            settings.negatives_kept if is_of_training else settings.test_negatives_kept
        )
        """Share of the unclicked rows that the rows to evaluate still hold."""
        self.training_shift = 0.0 if is_of_training else settings.training_shift
        """What is added to a logit of training rows to get one of these rows."""
        self.permutation: FeaturePermutation | None = None
        """Permutes features of the next iteration's rows; None where they are read as they are."""
        self._rank, self._in_process = rank_info.rank, not settings.num_workers
        self._shuffle = EpochShuffle(seed, 0, shuffle, settings.group_by_user)
        self._prefetched: _PrefetchedChunks | None = None
        self.layout = ReaderLayout(
            ranks=rank_info.world_size,
            workers=max(settings.num_workers, 1),
            batch_size=batch_size,
            shuffle_buffer_size=settings.shuffle_buffer_size,
        )
        self.set_epoch(0)

    def __len__(self) -> int:
        return num_steps(self._source.num_rows, self.layout)

    @property
    def count_names(self) -> list[str]:
        """Names of the entries of ``Batch.counts``."""
        return self._collate.count_names

    @property
    def path(self) -> str:
        """Path of the files."""
        return self._source.path

    @property
    def steps_left(self) -> int:
        """Number of steps of the next iteration."""
        return len(self._rows.partition) - self._num_done

    def batch_rows(self) -> Iterator[tuple[int, range]]:
        """Yields the reader process of each batch, and the numbers of its rows in the data.

        Rows are numbered from 0 in the order of the files, all files counted together; the row that
        only fills a batch up has no number.
        """
        assert not self._shuffle.enabled, "only unshuffled rows are numbered"
        return self._rows.partition.batch_rows(self._rank)

    def set_epoch(
        self, epoch: int, consumed: Sequence[ConsumedSteps] = (), *, followed: bool = False
    ) -> None:
        """Chooses the shuffle of the next iteration, and the position at which it begins.

        Args:
            epoch: from 0.
            consumed: steps that were trained on in this epoch, see :meth:`consumed`. Under the
                layout of the last of them the next batches are those that would have followed;
                under another one the remaining rows are partitioned anew, each of them read once.
            followed: the next epoch comes after this one, whose end prefetches its first chunk.

        Raises:
            ValueError: more steps were trained on than there are.
        """
        if self._prefetched is not None and not self._prefetched.begins_at(epoch, consumed):
            self._prefetched.chunks.close()
            self._prefetched = None
        self._epoch, self._consumed, self._followed = epoch, tuple(consumed), followed
        self._num_done, self._consumed_before = 0, self._consumed
        shuffle = replace(self._shuffle, epoch=epoch)
        layouts = [*(part.layout for part in consumed), self.layout]
        self._rows = EpochRows.whole(self._source, self._encode, shuffle, layouts[0])
        for part, layout in zip(consumed, layouts[1:], strict=True):
            if part.steps > (num := len(self._rows.partition)):
                raise ValueError(
                    f"a position in the data should have at most the {num} steps of its epoch, "
                    f"received {part.steps}; the checkpoint is damaged"
                )
            if part is consumed[-1] and layout == part.layout:
                self._num_done, self._consumed_before = part.steps, tuple(consumed[:-1])
            else:
                self._rows = self._rows.repartitioned(part.steps, layout)

    def consumed(self, steps: int) -> tuple[ConsumedSteps, ...]:
        """Returns the position in the epoch when ``steps`` steps of the iteration are done."""
        done = ConsumedSteps(layout=self.layout, steps=self._num_done + steps)
        return (*self._consumed_before, done)

    def __iter__(self) -> Iterator[Batch]:
        rows, worker = self._rows, self._worker()
        first = rows.partition.next_steps(self._num_done)[worker]
        bounds = rows.partition.step_bounds(self._rank)
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is None or not prefetched.begins_at(self._epoch, self._consumed):
            prefetched = self._prefetch(worker)
        try:
            for steps, chunk in zip(prefetched.steps, prefetched.chunks, strict=True):
                if self._followed and steps is prefetched.steps[-1]:
                    self._prefetch_next_epoch()
                start = bounds[steps.start]
                for step in range(max(first, steps.start), steps.stop):
                    part = slice(bounds[step] - start, bounds[step + 1] - start)
                    yield self._batch(chunk, part, rows, step)
        finally:
            prefetched.chunks.close()

    def prefetch(self) -> None:
        """Begins to read the first chunk of the next iteration.

        Reader processes do so when they are started, and not before.
        """
        if self._in_process and self.steps_left and self._prefetched is None:
            self._prefetched = self._prefetch(0)

    def _worker(self) -> int:
        """Returns the reader process whose steps this process reads.

        A DataLoader takes batches from its reader processes in turns, from the first on. A resumed
        iteration may begin at the turn of another one, whose steps the first process then reads.
        """
        info, partition = get_worker_info(), self._rows.partition
        assert partition.layout.workers == (info.num_workers if info else 1), (
            "data.num_workers is not the DataLoader's"
        )
        remaining = partition.training_order()[self._num_done :]
        if not remaining:
            return 0
        return (remaining[0][0] + (info.id if info else 0)) % partition.layout.workers

    def _batch(self, chunk: _ShuffledChunk, part: slice, rows: EpochRows, step: int) -> Batch:
        epoch_step = rows.partition.first_step + step
        return self._collate(
            chunk.chunk.take(part),
            chunk.dedup_keys_R[part],
            chunk.is_real_R[part],
            partial(rows.shuffle.random, self._rank, epoch_step),
        )

    def _prefetch_next_epoch(self) -> None:
        following = copy(self)
        following.set_epoch(self._epoch + 1)
        following.prefetch()
        self._prefetched = following._prefetched

    def _prefetch(self, worker: int) -> _PrefetchedChunks:
        """Begins to read the remaining chunks of a reader process."""
        rows, partition = self._rows, self._rows.partition
        first = partition.next_steps(self._num_done)[worker]
        decoder = rows.decoder()

        def read(steps: range) -> _ShuffledChunk:
            chunk, is_real_R = rows.shuffled(self._rank, steps, decoder)
            if self.permutation is not None:
                chunk = self.permutation(chunk, self._schema, (self._rank, steps.start))
            return _ShuffledChunk(chunk, self._collate.dedup_keys(chunk), is_real_R)

        steps = [steps for steps in partition.chunks(self._rank, worker) if steps.stop > first]
        return _PrefetchedChunks(self._epoch, self._consumed, steps, Prefetcher(read, steps))
