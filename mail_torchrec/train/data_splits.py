"""Training and evaluation rows of a run: reader, loader, negatives, and counts of the rows read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from mail_torchrec.config import Config
from mail_torchrec.continuation.days import training_day
from mail_torchrec.data.checks.evaluated_rows import check_evaluated_rows
from mail_torchrec.data.column_types import save_column_types
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import EncoderFitter
from mail_torchrec.data.list_shapes import ListShapes
from mail_torchrec.data.negatives import NegativeDistribution, NegativeSampler
from mail_torchrec.data.new_users import NewUserCounter, no_new_rows
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.data.validation_split import RowFilter, RowSplit
from mail_torchrec.data.weights.positions import position_rows
from mail_torchrec.data.weights.weight_sum import WeightSum
from mail_torchrec.distributed.collectives import (
    broadcast_from_rank_0,
    gather_rows,
    rank,
    results_of_ranks,
    world_size,
)
from mail_torchrec.distributed.reader_processes import ReaderProcesses, start_fork_server
from mail_torchrec.model.unused_settings import unused_settings
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span
from mail_torchrec.vocabularies.reading import read_over_ranks
from mail_torchrec.vocabularies.shares import row_group_shares

logger = get_logger(__name__)

_PREFETCHED_BATCHES = 4
# Imported once, in the process that reader processes are forked from.
_WORKER_MODULES = ("mail_torchrec.train.trainer",)

_COUNT_MESSAGES = {
    "unknown": ("ids without a row of their own", ""),
    "cut": ("lists cut to their newest max_length entries", " rows"),
    "distinct": ("different users of each batch, summed up", ""),
    "states": (
        "states of these users (attributes and behaviours), each computed once for its rows of a "
        "batch",
        "",
    ),
    "unclicked": ("conversions without a click, which count as none", " rows"),
}
"""Kind of count -> its message and its unit."""


@dataclass
class DataSplit:
    """A reader of this rank's rows, and the loader that runs it."""

    reader: Reader
    loader: "DataLoader[Batch]"


class Sources(NamedTuple):
    """Opened files of a run."""

    train: Source
    validation: Source | None
    """None where the run has no validation rows, or they are still among the training rows."""
    test: Source


def open_sources(config: Config) -> Sources:
    """Opens the training, validation and test data; of the test data, no rows are read.

    Validation rows that are split from the training files are still among the training rows, see
    :func:`split_validation_rows`.

    Raises:
        ValueError: nothing there, or columns that do not fit the schema or each other.
    """
    data, schema, settings = config.data, config.schema_, config.data.validation
    split = RowSplit(settings, schema) if settings is not None and settings.is_split else None
    with span("opening the data", reads=True):
        train = Source(data.path(data.train), schema, split=split)
        test = Source(data.path(data.test), schema, train.types)
        validation = None
        if settings is not None and settings.path is not None:
            remedy = "set data.validation.path to a Parquet file or folder below data.root"
            validation = Source(data.path(settings.path), schema, train.types, remedy)
        return Sources(train, validation, test)


def split_validation_rows(sources: Sources) -> Sources:
    """Splits the validation rows from the training files, where they hold any.

    Every rank calls it, and reads the column that decides of a share of the row groups.

    Raises:
        ValueError: no rows would be left for training or validation, or a bad time.
    """
    train = sources.train
    if (split := train.split) is None:
        return sources

    def count() -> list[dict[int, int]]:
        with span("splitting the validation rows", reads=True):
            return [*map(train.count_numbers, row_group_shares(train, world_size())[rank()])]

    numbers = [counts for of_rank in results_of_ranks(count) for counts in of_rank]
    first = split.first((number for counts in numbers for number in counts), train.path)

    def rows(kept: RowFilter) -> Source:
        counted = zip(train.row_groups, numbers, strict=True)
        groups = [replace(group, num_rows=kept.count(counts)) for group, counts in counted]
        return train.select(groups, kept)

    return sources._replace(
        train=rows(RowFilter(split, first, keeps_validation=False)),
        validation=rows(RowFilter(split, first, keeps_validation=True)),
    )


def load_split(
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    source: Source,
    *,
    training: bool,
) -> DataSplit:
    """Makes the reader and the loader of this rank's rows.

    Args:
        config: of the run.
        encoders: raw values -> rows of tables.
        feature_tables: feature keys of the batches.
        source: opened files.
        training: True for shuffled batches with negatives, False for evaluation batches.
    """
    reader = Reader(
        source,
        config.schema_,
        encoders,
        feature_tables,
        config.data,
        rank_info=RankInfo(rank(), world_size()),
        batch_size=config.train.batch_size if training else config.train.eval_batch_size,
        shuffle=training,
        seed=config.train.seed,
        samplers=negative_samplers(config, encoders, feature_tables) if training else {},
    )
    pins = config.train.device != "cpu" and torch.cuda.is_available()  # pinning opens CUDA
    return DataSplit(reader, _loader(reader, config.data.num_workers, pins=pins))


def _loader(reader: Reader, workers: int, *, pins: bool) -> "DataLoader[Batch]":
    if workers:
        start_fork_server(_WORKER_MODULES)
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        pin_memory=pins,
        prefetch_factor=_PREFETCHED_BATCHES if workers else None,
        # A plain fork copies CUDA and S3 clients, which do not survive it.
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=ReaderProcesses(workers) if workers else None,
        # Else each epoch draws from the generator of the dropout, and a resumed one once more.
        generator=torch.Generator(),
    )


def negative_samplers(
    config: Config, encoders: Encoders, feature_tables: FeatureTables
) -> dict[str, NegativeSampler]:
    """Builds a sampler for each sequence whose match loss the tower trains, by sequence."""
    samplers = {}
    for sequence in feature_tables.match:
        options = tower_settings(config.model.tower, config.model.tower_options)
        table = config.schema_.table_of(config.schema_.match_column(sequence))
        samplers[sequence] = NegativeSampler(
            NegativeDistribution(options.negatives),
            options.num_negatives,
            encoders.tables[table],
            table,
        )
    return samplers


def reduce_counts(reader: Reader, counts: torch.Tensor) -> dict[str, int]:
    """Sums the counts of all ranks, by name, without zeros.

    Args:
        reader: gives the names.
        counts: this rank's sums of ``Batch.counts``, ``[counts]``.
    """
    summed: Any = gather_rows(counts.unsqueeze(0)).sum(0).tolist()
    return {
        name: int(count) for name, count in zip(reader.count_names, summed, strict=True) if count
    }


def log_counts(where: str, counts: dict[str, int]) -> None:
    """Logs the counts that a person should know of: unknown ids, cut lists and the like.

    Args:
        where: the data they belong to.
        counts: name (``kind/column``) -> count over all ranks.
    """
    for kind, (message, unit) in _COUNT_MESSAGES.items():
        found = [
            f"{name.partition('/')[2]} {count:,}{unit}"
            for name, count in counts.items()
            if name.startswith(f"{kind}/")
        ]
        if found:
            logger.info("%s: %s: %s", where, message, ", ".join(found))


def fit_run_encoders(
    config: Config,
    sources: Sources,
    run_dir: RunDir,
    fit_on: Callable[[EncoderFitter, date | None], Encoders],
) -> None:
    """Fits the encoders, checks the evaluated rows, and writes the vocabularies; all ranks read.

    Args:
        config: of the run.
        sources: its files.
        run_dir: gets the vocabularies.
        fit_on: fits encoders on what was read, and the day of the training rows.
    """
    source = sources.train
    new_users, shapes = NewUserCounter(config.data), ListShapes(config.schema_)
    weights = WeightSum(config.schema_)

    fitted: list[Encoders] = []  # of rank 0

    def fit() -> dict[str, int]:
        weights.check(source.path)
        fitted.append(fit_on(fitter, training_day(config.data, source)))
        position_rows(config.schema_, fitted[0])  # checks position_value now, not after training
        return fitted[0].vector_dims

    def save() -> None:
        fitted[0].save(run_dir.vocabularies)
        save_column_types(sources.test.types, run_dir.vocabularies)
        for unused in unused_settings(config.model, config.schema_, config.data):
            logger.info("%s", unused)
        for warning in shapes.warnings():
            logger.warning("'%s': %s", source.path, warning)
        warn_without_new_rows(config, source.path, new_users.num_new, source.num_rows)

    with span("fitting the vocabularies"):
        of_data = source, config.schema_, config.data.cold_start
        fitter = read_over_ranks(*of_data, [new_users, shapes, weights])
        vector_dims = broadcast_from_rank_0(fit)
        results_of_ranks(lambda: _check_evaluated_rows(sources, config.schema_, vector_dims))
        broadcast_from_rank_0(save)


def _check_evaluated_rows(sources: Sources, schema: Schema, vector_dims: dict[str, int]) -> None:
    """Checks this rank's share of the validation and test rows."""
    with span("checking the evaluated rows", reads=True):
        for source in (sources.validation, sources.test):
            if source is not None:
                groups = row_group_shares(source, world_size())[rank()]
                check_evaluated_rows(source, schema, vector_dims, groups, progress=not rank())


def warn_without_new_rows(config: Config, path: str, num_new: int, num_rows: int) -> None:
    """Warns of data without a new user's row, where the model or the split is made for new users.

    Args:
        config: of the run.
        path: of the data.
        num_new: rows that are reported as new users'.
        num_rows: all rows.
    """
    model = config.model
    for_new_users = (
        model.zero_shot,
        model.baseline,
        model.behaviour_dropout,
        model.cold_loss_weight,
        config.data.cold_start.hides_users,
    )
    if not num_new and any(for_new_users):
        logger.warning("%s", no_new_rows(path, num_rows, config.schema_, config.data))
