"""Progressive validation: a parent scores the rows that a continued run is to train on.

Shape: ``R`` rows.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from mail_torchrec.config import Config
from mail_torchrec.continuation.days import file_days, training_day
from mail_torchrec.continuation.progressive_record import (
    ALL,
    NEW_ITEMS,
    NEW_USERS,
    OLD_ITEMS,
    OLD_USERS,
    Metrics,
    ProgressiveRecord,
)
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import column_ids
from mail_torchrec.data.items.candidate_item import candidate_item
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.metrics.cohorts import EvaluatedRows, MetricsReport
from mail_torchrec.metrics.partitions import Partition
from mail_torchrec.metrics.row_columns import read_rows
from mail_torchrec.train.assembly import AssembledModel
from mail_torchrec.train.data_splits import load_split
from mail_torchrec.train.evaluation import score_rows
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)

_USERS = NEW_USERS, OLD_USERS
_ITEMS = NEW_ITEMS, OLD_ITEMS
_SHOWN = ("auc", "gauc", "normalised_entropy", "calibration")


def score_new_rows(
    assembled: AssembledModel,
    config: Config,
    encoders: Encoders,
    source: Source,
    parent_step: int,
    check_stop: Callable[[], None],
) -> ProgressiveRecord:
    """Scores the new training rows with the parent's model and vocabularies; every rank calls it.

    Weights and random generators are the same before and after.

    Args:
        assembled: with the parent's weights.
        config: of the new run.
        encoders: the parent's.
        source: new training rows, or a sample of them.
        parent_step: step of the weights.
        check_stop: called before each batch; raises where the run must stop.
    """
    start = time.perf_counter()
    kept = config.data.negatives_kept
    # Rows to evaluate that are sampled as the training rows are.
    data = config.data.model_copy(update={"test_negatives_kept": kept})
    sampled = config.model_copy(update={"data": data})
    split = load_split(sampled, encoders, assembled.feature_tables, source, training=False)
    devices = [assembled.device] if assembled.device.type == "cuda" else []
    with span("progressive validation"), torch.random.fork_rng(devices):
        scored = score_rows(assembled, split.reader, _watched(split.loader, check_stop))
        item = _item_with_owners(config, encoders)
        partitions = {"users": Partition(_USERS, (~scored.rows.is_new_R).astype(np.uint16))}
        if item is not None:
            partitions["items"] = _items(config, encoders, source, item, scored.numbers)
        metrics, by_day = _metrics(scored.rows, partitions, *_days(config, source, scored.numbers))
    day = training_day(config.data, source)
    return ProgressiveRecord(
        parent_step=parent_step,
        day=None if day is None else str(day),
        rows=int(metrics[ALL]["rows"]),
        seconds=round(time.perf_counter() - start, 2),
        item=item,
        metrics=metrics,
        by_day=by_day,
    )


def log_progressive(record: ProgressiveRecord) -> None:
    """Logs the metrics of a parent on the new rows, a line a cohort."""
    for cohort, found in record.metrics.items():
        if found["rows"]:
            values = (f"{name} {found[name]:.4f}" for name in _SHOWN if found.get(name) is not None)
            rows = f"{found['rows']:,} rows"
            logger.info("the parent on new data, %s, %s: %s", cohort, rows, "  ".join(values))


def _watched(loader: "DataLoader[Batch]", check_stop: Callable[[], None]) -> Iterator[Batch]:
    for batch in loader:
        check_stop()
        yield batch


def _item_with_owners(config: Config, encoders: Encoders) -> str | None:
    """Finds the column of the item; None where there is none, or its ids are not told apart."""
    schema = config.schema_
    item = candidate_item(schema)
    if item is None or encoders.tables[schema.table_of(item)].values is None:
        return None
    return item


def _items(
    config: Config, encoders: Encoders, source: Source, item: str, numbers: Sequence[range]
) -> Partition:
    """Partitions rows into those with items that the parent does not know, and the others."""
    schema = config.schema_
    encoder = encoders.tables[schema.table_of(item)]

    def read(group: RowGroup) -> pa.Array:
        table, file = source.read(group, [schema.file_column(item)]), source.file(group)
        rows_N = encoder.encode(column_ids(table, schema, item, file))
        return pa.array(~encoder.is_unknown(rows_N))

    is_old_R = read_rows(source, numbers, read).to_numpy(zero_copy_only=False)
    return Partition(_ITEMS, is_old_R.astype(np.uint16))


def _days(config: Config, source: Source, numbers: Sequence[range]) -> tuple[list[str], Ints]:
    """Returns the days of the rows, the first one first, and the place of each row's day, [R]."""
    of_files = file_days(config.data, source)
    days = sorted({day for day in of_files if day is not None})
    if not days or None in of_files:
        return [], np.zeros(0, np.int64)
    places = [days.index(day) for day in of_files if day is not None]

    def read(group: RowGroup) -> pa.Array:
        return pa.array(np.full(group.num_rows, places[group.file]))

    places_R: Ints = read_rows(source, numbers, read).to_numpy(zero_copy_only=False)
    return [str(day) for day in days], places_R


def _metrics(
    rows: EvaluatedRows, partitions: Mapping[str, Partition], days: list[str], places_R: Ints
) -> tuple[Metrics, dict[str, Metrics]]:
    """Computes the metrics by cohort, and by day and cohort, in one pass over all ranks' rows."""
    every = Partition((ALL,), np.zeros(len(rows.scores_R), np.uint16))
    of_all = {"all": every, **partitions}
    columns = dict(of_all)
    if days:
        columns |= {f"{name}/day": _by_day(part, days, places_R) for name, part in of_all.items()}
    found = MetricsReport.of(replace(rows, columns=columns)).by
    names = {name: part.names for name, part in of_all.items()}
    nothing: dict[str, Any] = {key: None for key in found["all"][ALL]} | {"rows": 0, "users": 0}

    def cohorts(suffix: str, prefix: str) -> Metrics:
        return {
            cohort: dict(found[name + suffix].get(prefix + cohort, nothing))
            for name, of_name in names.items()
            for cohort in of_name
        }

    return cohorts("", ""), {day: cohorts("/day", f"{day}/") for day in days}


def _by_day(part: Partition, days: list[str], places_R: Ints) -> Partition:
    """Cuts each group of a partition by day."""
    names = tuple(f"{day}/{name}" for day in days for name in part.names)
    return Partition(names, (places_R * len(part.names) + part.codes_R).astype(np.uint16))
