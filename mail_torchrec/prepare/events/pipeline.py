"""Runs ``mail-torchrec prepare events``: from event logs and catalogues to impression rows.

Each table is read once, checked, and split into buckets of users; then the rows of one bucket after
the other are made, so that memory is bounded by a bucket.
"""

import json
import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.engine import QueryEngine, open_engine
from mail_torchrec.prepare.events.as_of import overlapping_versions
from mail_torchrec.prepare.events.build_rows import build_rows, sort_order
from mail_torchrec.prepare.events.day_files import write_days
from mail_torchrec.prepare.events.plan import EventsPlan
from mail_torchrec.prepare.events.planner import make_plan
from mail_torchrec.prepare.events.read_table import (
    ROWS_A_FILE,
    TableCounts,
    TableReader,
    check_counts,
)
from mail_torchrec.prepare.events.settings import EventsSettings, duration_us
from mail_torchrec.prepare.events.summary import ROWS_FOLDER
from mail_torchrec.prepare.events.table_plans import TablePlan, ibis_type
from mail_torchrec.prepare.output_folder import (
    RECORD_NAME,
    WORK_FOLDER,
    file_identity,
    is_finished,
    write_atomically,
)
from mail_torchrec.prepare.resumable_steps import ResumableSteps, StepRecord
from mail_torchrec.prepare.settings import PrepareSettings
from mail_torchrec.utils.file_lock import lock_folder

BUCKET_BYTES = 64 * 2**20
"""Bytes of files, mostly compressed, for each bucket of users."""


def prepare_events(settings: EventsSettings, options: PrepareSettings, out: Path) -> StepRecord:
    """Makes impression rows; interrupted, the same call goes on from there.

    Args:
        settings: tables, histories and labels.
        options: engine, memory, threads and buckets.
        out: folder to write ``rows/day=.../`` (Parquet) and last ``prepared.json`` into.

    Returns:
        The content of ``prepared.json``.

    Raises:
        ValueError: files, columns, keys or times do not fit, or files changed meanwhile; ``out``
            holds something else, was begun with other settings or files, or another process is
            at it; the engine fails.
    """
    plan = make_plan(settings)
    paths = [path for table in plan.tables for path in table.files.paths]
    num_bytes = sum(path.stat().st_size for path in paths)
    inputs: StepRecord = {
        "settings": settings.model_dump(mode="json"),
        "engine": options.engine.value,
        "buckets": options.buckets or -(-num_bytes // BUCKET_BYTES),
        "files": {str(path): file_identity(path) for path in paths},
    }
    with lock_folder(out):
        if is_finished(out, inputs):
            finished: StepRecord = json.loads((out / RECORD_NAME).read_text())
            return finished
        return _run_steps(settings, options, plan, inputs, out)


def _run_steps(
    settings: EventsSettings,
    options: PrepareSettings,
    plan: EventsPlan,
    inputs: StepRecord,
    out: Path,
) -> StepRecord:
    """Runs the steps that are not finished yet, and publishes the rows."""
    num_buckets = inputs["buckets"]
    work = out / WORK_FOLDER
    with (
        closing(open_engine(options, work / "spill")) as engine,
        ResumableSteps(work, len(plan.tables) + num_buckets, engine.progress) as steps,
    ):
        for table in plan.tables:
            step = partial(_read_table, engine, table, settings, num_buckets)
            record = steps.run(table.step, step)
            if record["engine"] != engine.version:  # its hashes may be others
                raise ValueError(
                    f"'{out}' was begun with {record['engine']}, now {engine.version}; choose "
                    "another --out, or delete it"
                )
        last_us = {name: steps.records[table.step]["last"] for name, table in plan.events.items()}
        for bucket in range(num_buckets):
            tables = {
                table.label: _stored(engine, table, steps.folder(table.step), bucket)
                for table in plan.tables
            }
            step = partial(_write_rows, engine, plan, tables, last_us, settings)
            steps.run(_rows_step(bucket), step)
        _check_unchanged(inputs)
        return _publish(plan, inputs, out, steps, engine.version)


def _rows_step(bucket: int) -> str:
    return f"rows-{bucket:05}"


def _read_table(
    engine: QueryEngine,
    plan: TablePlan,
    settings: EventsSettings,
    num_buckets: int,
    folder: Path,
) -> StepRecord:
    """Reads a table into Parquet, one folder a bucket, and checks it."""
    is_impressions = plan.label == "impressions"
    reader = TableReader(plan, is_impressions or plan.is_catalogue, settings.time_range)
    types = {name: ibis_type(kind) for name, kind in plan.query_types.items()}
    table = engine.arrow(reader.batches(), types, folder / "scratch.parquet")
    bucket = ibis.literal(0, "int64")
    if plan.is_by_user and num_buckets > 1:
        key = table.key.hash()
        if is_impressions:  # those without a user are spread over the buckets
            key = ibis.ifelse(table.key.isnull(), table.time.hash(), key)
        bucket = (key % num_buckets).abs().cast("int64")
    try:
        engine.write(table.mutate(bucket=bucket), folder / "parts", by="bucket")
    except ValueError:
        if reader.error is not None:
            raise reader.error from None
        raise
    (folder / "scratch.parquet").unlink(missing_ok=True)
    of_log = not (is_impressions or plan.is_catalogue)
    check_counts(plan, reader.counts, settings.max_dropped, of_log)
    if plan.is_catalogue:
        _check_versions(engine, plan, _stored(engine, plan, folder, None))
    return asdict(reader.counts) | {"engine": engine.version}


def _stored(engine: QueryEngine, plan: TablePlan, folder: Path, bucket: int | None) -> Table:
    """Opens a table in one bucket, or in all of them for None."""
    types = {name: ibis_type(kind) for name, kind in plan.query_types.items()}
    table = engine.stored(folder / "parts", types | {"bucket": "int64"})
    if plan.is_by_user and bucket is not None:
        table = table.filter(table.bucket == bucket)
    table = table.drop("bucket")
    if plan.drops_duplicates:
        if plan.is_catalogue:
            others = [name for name in types if name != "place"]
            table = table.group_by(others).agg(place=table.place.min())
        else:
            table = table.distinct()
    return table if plan.is_catalogue else table.rename(user="key")


def _check_versions(engine: QueryEngine, plan: TablePlan, table: Table) -> None:
    """Checks that at any time a key has one row.

    Raises:
        ValueError: it has two, with both rows.
    """
    found = overlapping_versions(table).order_by("key", "place").limit(1)
    for key, *places in engine.rows(found.select("key", "place", "other")):
        rows = [
            f"{plan.files.paths[place // ROWS_A_FILE]} row {place % ROWS_A_FILE}"
            for place in places
        ]
        valid = f"from '{plan.time.source}' on" if plan.time else "(it has no valid_from)"
        raise ValueError(
            f"{rows[0]} and {rows[1]}: column '{plan.key}' ({plan.label}.key) should have one row "
            f"at a time {valid}, received two for {key!r}; leave one out, or set valid_from and "
            "valid_until apart (drop_duplicates: true removes rows that are equal)"
        )


def _write_rows(
    engine: QueryEngine,
    plan: EventsPlan,
    tables: dict[str, Table],
    last_us: dict[str, int],
    settings: EventsSettings,
    folder: Path,
) -> StepRecord:
    """Builds the rows of one bucket, split by day."""
    rows = build_rows(plan, tables, last_us)
    engine.write(rows.order_by(sort_order(plan, rows)), folder / "rows")
    day_begins_us = duration_us(settings.day_begins)
    record = write_days(folder / "rows", folder / "days", plan, day_begins_us, last_us)
    written = folder / "rows"
    shutil.rmtree(written) if written.is_dir() else written.unlink()
    logs = {name: tables[name] for name in ("impressions", *(f"events.{n}" for n in plan.events))}
    duplicates = {name: _count_duplicates(engine, table) for name, table in logs.items()}
    [(impressions,)] = engine.rows(tables["impressions"].aggregate(rows=ibis._.count()))
    num_rows = sum(record["days"].values())
    drops = any(label.drops_incomplete for label in plan.labels.values())
    assert num_rows == impressions or (drops and num_rows < impressions)
    return record | {"duplicates": duplicates, "impressions": impressions}


def _count_duplicates(engine: QueryEngine, table: Table) -> int:
    """Counts rows that are equal to another one in all columns taken."""
    [(rows,)] = engine.rows(table.aggregate(rows=table.count()))
    distinct = table.distinct()
    [(kinds,)] = engine.rows(distinct.aggregate(rows=distinct.count()))
    return int(rows - kinds)


def _check_unchanged(inputs: StepRecord) -> None:
    for path, identity in inputs["files"].items():
        if file_identity(Path(path)) != identity:
            raise ValueError(
                f"{path}: the file changed while it was read; choose another --out and prepare "
                "again, when the file is whole"
            )


def _publish(
    plan: EventsPlan, inputs: StepRecord, out: Path, steps: ResumableSteps, engine_version: str
) -> StepRecord:
    """Moves the rows into place; those moved before an interruption are no longer there.

    ``prepared.json`` is written last: where it exists the preparation is finished.
    """
    days: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    duplicates: Counter[str] = Counter()
    for bucket in range(inputs["buckets"]):
        record = steps.records[_rows_step(bucket)]
        days.update(record["days"])
        counts.update(record["counts"])
        duplicates.update(record["duplicates"])
        for day in record["days"]:
            source = steps.folder(_rows_step(bucket)) / "days" / f"{day}.parquet"
            if source.exists():
                folder = out / ROWS_FOLDER / f"day={day}"
                folder.mkdir(parents=True, exist_ok=True)
                os.replace(source, folder / f"{bucket:05}.parquet")
    if not days:
        raise ValueError(
            "labels: all impressions have a window that ends after the last event, and "
            "drop_incomplete leaves them out; take a shorter window or later events"
        )
    records = steps.records
    tables = {
        table.label: {name: records[table.step][name] for name in asdict(TableCounts())}
        | ({"duplicates": duplicates[table.label]} if table.label in duplicates else {})
        for table in plan.tables
    }
    seconds = sum(record["seconds"] for record in records.values())
    num_read = sum(table["rows"] for table in tables.values())
    prepared = {
        "inputs": inputs,
        "engine": engine_version,
        "tables": tables,
        "rows": sum(days.values()),
        "days": dict(sorted(days.items())),
        "counts": dict(counts),
        "seconds": round(seconds, 1),
        "rows_per_second": round(num_read / seconds),
        "peak_rss_bytes": max(record["peak_rss_bytes"] for record in records.values()),
    }
    write_atomically(out / RECORD_NAME, json.dumps(prepared | {"steps": records}, indent=2) + "\n")
    shutil.rmtree(out / WORK_FOLDER)
    return prepared
