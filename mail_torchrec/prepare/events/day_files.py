"""Writes rows in order of time into one Parquet file a day, with the names and types of files."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mail_torchrec.prepare.events.plan import EventsPlan
from mail_torchrec.prepare.events.table_plans import from_engine
from mail_torchrec.prepare.resumable_steps import StepRecord

DAY_US = 86_400 * 10**6
_BATCH_ROWS = 16_384


def write_days(
    rows: Path, folder: Path, plan: EventsPlan, day_begins_us: int, last_us: dict[str, int]
) -> StepRecord:
    """Splits the rows of a bucket by day, and counts them.

    Args:
        rows: Parquet file or folder of the engine, in order of time.
        folder: gets ``2024-05-01.parquet`` and so on.
        plan: names and types.
        day_begins_us: microseconds by which midnight comes before that of UTC.
        last_us: time of the last event of each log, by the log's name.

    Returns:
        Rows by day, rows without a user, rows without a row of each catalogue, rows with an empty
        history, and of each label the positive and the incomplete ones.
    """
    folder.mkdir()
    schema = pa.schema([(column.name, column.type) for column in plan.columns])
    days: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with ExitStack() as files:
        writer, last_day = None, ""
        for batch in _batches(rows):
            _count(batch, plan, last_us, counts)
            values = [from_engine(batch[column.query_name], column.type) for column in plan.columns]
            named = pa.table(values, schema)
            for day, start, length in _day_slices(batch["time"], day_begins_us):
                if day != last_day:
                    assert day > last_day, "rows are in order of time"
                    files.close()
                    path = folder / f"{day}.parquet"
                    writer = files.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                    last_day = day
                assert writer is not None, "a first day was opened"
                writer.write_table(named.slice(start, length))
                days[day] += length
    return {"days": dict(days), "counts": dict(counts)}


def _batches(rows: Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows; Spark writes a folder of files in order, DuckDB one file."""
    for path in sorted(rows.glob("*.parquet")) if rows.is_dir() else [rows]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH_ROWS)


def _day_slices(time: pa.Array, day_begins_us: int) -> Iterator[tuple[str, int, int]]:
    """Yields each day of sorted times with its first row and its number of rows."""
    days = (time.to_numpy() + day_begins_us) // DAY_US
    starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1))
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        day = date(1970, 1, 1) + timedelta(days=int(days[start]))
        yield day.isoformat(), int(start), int(end - start)


def _count(
    batch: pa.RecordBatch, plan: EventsPlan, last_us: dict[str, int], counts: Counter[str]
) -> None:
    counts["without_user"] += batch["user"].null_count
    for number, join in enumerate(plan.joins):
        flags = batch[f"m{number}"]
        counts[f"not in catalogues.{join.catalogue}"] += len(flags) - pc.sum(flags).as_py()
    for name, history in plan.histories.items():
        lengths = pc.list_value_length(batch[history.lists[0].query_name])
        counts[f"empty histories.{name}"] += pc.sum(pc.equal(lengths, 0)).as_py()
    for name, label in plan.labels.items():
        counts[f"positive labels.{name}"] += pc.sum(batch[label.column.query_name]).as_py()
        last = min(last_us[log.log] for log in label.logs) - label.within_us
        counts[f"incomplete labels.{name}"] += pc.sum(pc.greater(batch["time"], last)).as_py()
