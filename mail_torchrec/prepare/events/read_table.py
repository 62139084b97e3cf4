"""Reads a table in pieces, checks keys and times, and counts what is left out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.prepare.events.table_plans import TablePlan, TimeColumn, to_engine
from mail_torchrec.prepare.events.times import describe_time, to_microseconds

ROWS_A_FILE = 2**40
"""The place of a row of a catalogue is the number of its file times this, plus its row."""


@dataclass
class TableCounts:
    """Rows of one table.

    Args:
        rows: rows that are kept.
        without_key: rows without a user; kept of impressions, left out of events.
        without_time: rows without a time, left out.
        unlikely_times: rows whose time is not plausible, left out.
        never_valid: rows of a catalogue that end where they begin, left out.
        first: first time in microseconds.
        last: last time in microseconds.
        example: a row that was left out.
    """

    rows: int = 0
    without_key: int = 0
    without_time: int = 0
    unlikely_times: int = 0
    never_valid: int = 0
    first: int | None = None
    last: int | None = None
    example: str | None = None


@dataclass
class TableReader:
    """Rows of one table as an engine takes them.

    Args:
        plan: what to read.
        keeps_null_keys: whether rows without a key are kept.
        time_range: first and last plausible day.
        counts: what has been read so far.
        error: what ended the reading; engines word it in their own way.
    """

    plan: TablePlan
    keeps_null_keys: bool
    time_range: tuple[date, date]
    counts: TableCounts = field(default_factory=TableCounts)
    error: ValueError | None = None

    def batches(self) -> pa.RecordBatchReader:
        """Returns the rows, to be read once."""
        schema = pa.schema(list(self.plan.query_types.items()))
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        plan = self.plan
        times = [column.source for column in (plan.time, plan.until) if column is not None]
        sources = [plan.key, *times, *(column.source for column in plan.selected.values())]
        numbers = {path: number for number, path in enumerate(plan.files.paths)}
        try:
            for path, row, batch in plan.files.batches(list(dict.fromkeys(sources))):
                yield self._convert(path, numbers[path], row, batch, schema)
        except ValueError as error:
            self.error = error
            raise

    def _convert(
        self, path: Path, number: int, row: int, batch: pa.RecordBatch, schema: pa.Schema
    ) -> pa.RecordBatch:
        """Casts a piece to the types of queries, without the rows to be left out."""
        plan = self.plan
        key_type = plan.files.types[plan.key]
        values = {"key": self._cast(path, plan.key, batch, key_type)}
        keep = self._keep_by_key(path, row, values["key"])
        if plan.time is not None:
            values["time"] = self._times(path, row, batch, plan.time)
            keep = pc.and_(keep, values["time"].is_valid())
        if plan.until is not None:
            values["until"] = self._times(path, row, batch, plan.until, optional=True)
            keep = pc.and_(keep, self._is_ever_valid(path, row, values))
        if plan.is_catalogue:
            start = number * ROWS_A_FILE + row
            values["place"] = pa.array(range(start, start + batch.num_rows), pa.int64())
        for column in plan.selected.values():
            values[column.query_name] = self._cast(path, column.source, batch, column.type)
        kept = pa.record_batch([values[name] for name in schema.names], schema).filter(keep)
        self._count(kept)
        return kept

    def _cast(self, path: Path, source: str, batch: pa.RecordBatch, kind: pa.DataType) -> pa.Array:
        try:
            return to_engine(batch[source], kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{path}: column '{source}' should be {kind}: {' '.join(str(error).split())[:200]};"
                " write other values, or another type"
            ) from error

    def _keep_by_key(self, path: Path, row: int, keys: pa.Array) -> pa.Array:
        """Returns true for rows to keep; a catalogue has no row without a key."""
        valid = keys.is_valid()
        if keys.null_count and self.plan.is_catalogue:
            raise ValueError(
                f"{path}: column '{self.plan.key}' ({self.plan.label}.key) should be set in all "
                f"rows, received null in row {row + pc.index(valid, False).as_py()}; leave such "
                "rows out"
            )
        self.counts.without_key += keys.null_count
        if self.keeps_null_keys or not keys.null_count:
            return pc.if_else(valid, True, True)
        self._give_example(f"{path}: row {row + pc.index(valid, False).as_py()} has no user")
        return valid

    def _times(
        self,
        path: Path,
        row: int,
        batch: pa.RecordBatch,
        column: TimeColumn,
        optional: bool = False,
    ) -> pa.Array:
        """Returns times in microseconds, null where they are null or not plausible."""
        raw = batch[column.source]
        lower, upper = (_midnight_us(day) for day in self._days())
        found = to_microseconds(raw, column.unit, lower, upper, self.plan.is_catalogue)
        num_null, num_unlikely = raw.null_count, found.null_count - raw.null_count
        if num_unlikely:
            index = pc.index(pc.and_(raw.is_valid(), found.is_null()), True).as_py()
            such_as = self._fault(path, row + index, column, raw[index].as_py())
            if self.plan.is_catalogue:
                raise ValueError(such_as)
            self._give_example(such_as)
        if num_null and not optional:
            index = pc.index(raw.is_null(), True).as_py()
            such_as = self._fault(path, row + index, column, None)
            if self.plan.is_catalogue:
                raise ValueError(such_as)
            self._give_example(such_as)
        if not self.plan.is_catalogue:
            self.counts.without_time += num_null
            self.counts.unlikely_times += num_unlikely
        return found

    def _days(self) -> tuple[date, date]:
        first, last = self.time_range
        return first, last + timedelta(days=1)

    def _fault(self, path: Path, row: int, column: TimeColumn, value: object) -> str:
        expected = (
            f"{path}: column '{column.source}' ({column.role}) should be a time between "
            f"{self.time_range[0]} and {self.time_range[1]}"
        )
        if value is None:
            return f"{expected}, received null in row {row}; leave such rows out"
        return f"{expected}, received {describe_time(value, column.unit)} in row {row}"

    def _is_ever_valid(self, path: Path, row: int, values: dict[str, pa.Array]) -> pa.Array:
        """Returns false for rows that end where they begin."""
        since, until = values["time"], values["until"].fill_null(2**62)
        if pc.any(is_wrong := pc.less(until, since)).as_py():
            assert self.plan.until is not None
            index = pc.index(is_wrong, True).as_py()
            raise ValueError(
                f"{path}: column '{self.plan.until.source}' ({self.plan.until.role}) should not be "
                f"before the begin of validity, received so in row {row + index}, key "
                f"{values['key'][index].as_py()!r}; exchange the two times, or leave the row out"
            )
        never = pc.equal(until, since)
        self.counts.never_valid += pc.sum(never).as_py() or 0
        return pc.invert(never)

    def _give_example(self, text: str) -> None:
        self.counts.example = self.counts.example or text

    def _count(self, kept: pa.RecordBatch) -> None:
        counts = self.counts
        counts.rows += kept.num_rows
        if self.plan.time is not None and kept.num_rows:
            bounds = pc.min_max(kept["time"]).as_py()
            counts.first = min(filter(_is_set, (bounds["min"], counts.first)))
            counts.last = max(filter(_is_set, (bounds["max"], counts.last)))


def check_counts(plan: TablePlan, counts: TableCounts, max_dropped: float, of_log: bool) -> None:
    """Checks that few rows were left out of a table, and that some are left.

    Raises:
        ValueError: no row is left, or more were left out than ``max_dropped`` allows.
    """
    dropped = counts.without_time + counts.unlikely_times + (counts.without_key if of_log else 0)
    total = counts.rows + dropped
    such_as = f", such as {counts.example}" if counts.example else ""
    if dropped > max_dropped * total:
        raise ValueError(
            f"{plan.label}: {dropped:,} of {total:,} rows have no user or no plausible time "
            f"({dropped / total:.2%}, the limit is {max_dropped:.2%}){such_as}; correct the files "
            "or the settings, or allow more with max_dropped"
        )
    if not counts.rows:
        raise ValueError(
            f"{plan.label}: '{plan.files.paths[0]}' should hold rows, received none{such_as}; name "
            "other files, or leave the table out"
        )


def _is_set(value: int | None) -> bool:
    return value is not None


def _midnight_us(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 10**6
