"""Runs ``mail-torchrec prepare``: from raw logs to impression rows with histories.

Each file is read once and split into buckets of users; then the rows of one bucket after the other
are made, so that memory is bounded by a bucket.
"""

import json
import shutil
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path

from mail_torchrec.prepare.alimama import ALIMAMA
from mail_torchrec.prepare.dataset import DatasetSpec, Tables
from mail_torchrec.prepare.engine import QueryEngine, open_engine
from mail_torchrec.prepare.kuairand import KUAIRAND
from mail_torchrec.prepare.line_counts import LineCounts, count_parsed_lines
from mail_torchrec.prepare.log_files import LogFile
from mail_torchrec.prepare.movielens import MOVIELENS
from mail_torchrec.prepare.output_folder import (
    RECORD_NAME,
    WORK_FOLDER,
    file_identity,
    is_finished,
)
from mail_torchrec.prepare.publish import PARTS, publish
from mail_torchrec.prepare.resumable_steps import ResumableSteps, StepRecord
from mail_torchrec.prepare.settings import PrepareSettings
from mail_torchrec.utils.file_lock import lock_folder

DATASETS = {"alimama": ALIMAMA, "kuairand": KUAIRAND, "movielens": MOVIELENS}
BUCKET_BYTES = 256 * 2**20


def prepare(name: str, settings: PrepareSettings, raw: Path, out: Path) -> StepRecord:
    """Prepares a data set; interrupted, the same call goes on from there.

    Args:
        name: a key of ``DATASETS``.
        settings: options of the command.
        raw: folder with the files as published.
        out: folder to write ``train/`` and ``test/`` (Parquet), ``config.yaml``, and last
            ``prepared.json`` into.

    Returns:
        The content of ``prepared.json``.

    Raises:
        ValueError: a file is missing, empty, of another layout or too malformed, or changes while
            it is read; ``out`` holds something else, was begun with other settings or files, or
            another process is at it; there are no training rows; the engine fails.
    """
    dataset = DATASETS[name]
    paths = {file: file.find(raw, dataset.folders) for file in dataset.files}
    days = settings.time_range or dataset.days
    num_bytes = sum(path.stat().st_size for path in paths.values())
    inputs: StepRecord = {
        "dataset": name,
        "engine": settings.engine.value,
        "history": settings.history,
        "test_days": settings.test_days,
        "time_range": [day.isoformat() for day in days],
        "buckets": settings.buckets or -(-num_bytes // BUCKET_BYTES),
        "files": {file.name: file_identity(path) for file, path in paths.items()},
    }
    with lock_folder(out):
        if is_finished(out, inputs):
            finished: StepRecord = json.loads((out / RECORD_NAME).read_text())
            return finished
        return _run_steps(dataset, settings, inputs, paths, raw, out)


def _run_steps(
    dataset: DatasetSpec,
    settings: PrepareSettings,
    inputs: StepRecord,
    paths: dict[LogFile, Path],
    raw: Path,
    out: Path,
) -> StepRecord:
    """Runs the steps that are not finished yet, and publishes the rows."""
    num_buckets = inputs["buckets"]
    num_steps = len(paths) + 1 + num_buckets
    with (
        closing(open_engine(settings, out / WORK_FOLDER / "spill")) as engine,
        ResumableSteps(out / WORK_FOLDER, num_steps, engine.progress) as steps,
    ):
        tables = _read_files(engine, steps, dataset, settings, paths, num_buckets)
        all_users = _select_bucket(dataset, tables, None)
        days = steps.run("days", lambda _: _find_days(engine, dataset, all_users))
        first_test_day = _first_test_day(days, settings.test_days, raw)
        for bucket in range(num_buckets):
            part = _select_bucket(dataset, tables, bucket)
            steps.run(
                f"rows-{bucket:05}",
                partial(_build_rows, engine, dataset, part, settings.history, first_test_day),
            )
        rows = [steps.records[f"rows-{bucket:05}"] for bucket in range(num_buckets)]
        assert days["impressions"] == sum(record["impressions"] for record in rows)
        return publish(dataset, inputs, out, steps, engine.version)


def _read_files(
    engine: QueryEngine,
    steps: ResumableSteps,
    dataset: DatasetSpec,
    settings: PrepareSettings,
    paths: dict[LogFile, Path],
    num_buckets: int,
) -> Tables:
    """Parses all files into Parquet, and checks their shares of malformed lines."""
    days = settings.time_range or dataset.days
    for file, path in paths.items():
        step = partial(_parse_file, engine, file, path, num_buckets, dataset.ticks(days))
        record = steps.run(f"read-{file.name}", step)
        counts = LineCounts(**{field.name: record[field.name] for field in fields(LineCounts)})
        counts.check(str(path), settings.max_malformed, days)
    return {
        file.name: engine.stored(steps.folder(f"read-{file.name}") / "parts", file.stored_columns)
        for file in paths
    }


def _first_test_day(days: StepRecord, num_test_days: int, raw: Path) -> int:
    """Computes the first day of the test rows.

    Raises:
        ValueError: no day is left for training.
    """
    first: int = days["last"] - num_test_days + 1
    if days["first"] >= first:
        raise ValueError(
            f"{raw}: all impressions lie in the last {num_test_days} days, which are for "
            "testing; choose fewer with --test-days, or give files of more days"
        )
    return first


def _parse_file(
    engine: QueryEngine,
    file: LogFile,
    path: Path,
    num_buckets: int,
    ticks: range,
    folder: Path,
) -> StepRecord:
    """Parses a file into Parquet, one folder a bucket, and counts its lines."""
    parsed = file.parse(engine.lines(path), num_buckets, ticks, file.header_line(path))
    engine.write(parsed, folder / "parts", by="bucket")
    parts = engine.stored(folder / "parts", file.stored_columns)
    return count_parsed_lines(engine, parts, path).record()


def _select_bucket(dataset: DatasetSpec, tables: Tables, bucket: int | None) -> Tables:
    """Selects the well-formed lines of one bucket, or of all buckets for None.

    Files that are not split by user are whole in each bucket.
    """
    selected = {}
    for file in dataset.files:
        table = tables[file.name]
        is_whole = bucket is None or file.user_field is None
        keep = table.bucket >= 0 if is_whole else table.bucket == bucket
        selected[file.name] = table.filter(keep).drop("bucket", "malformed")
    return selected


def _find_days(engine: QueryEngine, dataset: DatasetSpec, tables: Tables) -> StepRecord:
    """Finds the number, the first and the last day of the impressions."""
    time = dataset.select_impressions(tables).time
    day = dataset.day_number(time)
    found = time.as_table().aggregate(rows=time.count(), first=day.min(), last=day.max())
    [(rows, first, last)] = engine.rows(found)
    return {"impressions": rows, "first": first, "last": last}


def _build_rows(
    engine: QueryEngine,
    dataset: DatasetSpec,
    tables: Tables,
    history: int,
    first_test_day: int,
    folder: Path,
) -> StepRecord:
    """Builds the rows of one bucket of users, in order of time, split into training and test."""
    impressions = dataset.select_impressions(tables)
    [(expected,)] = engine.rows(impressions.aggregate(rows=impressions.count()))
    rows = dataset.add_features(impressions, tables, history).drop("user")
    rows = rows.mutate(is_test=dataset.day_number(rows.time) >= first_test_day)
    engine.write(rows, folder / "rows")
    types = {column: str(kind) for column, kind in rows.schema().items()}
    stored = engine.stored(folder / "rows", types)
    is_array = {column: kind.is_array() for column, kind in rows.schema().items()}
    order = ["time", *(name for name in types if not is_array[name] and name != "time")]
    counts: dict[str, int] = {}
    for part in PARTS:
        selected = stored.filter(stored.is_test == (part == "test"))
        engine.write(selected.order_by(order).drop("is_test"), folder / part)
        [(counts[part],)] = engine.rows(selected.aggregate(rows=selected.count()))
    _remove(folder / "rows")
    _check_row_count(expected, sum(counts.values()))
    return {"impressions": expected} | counts


def _check_row_count(expected: int, found: int) -> None:
    if found != expected:
        raise ValueError(
            f"{expected} impressions became {found} rows: a file that should hold each user, item "
            "or ad once holds one twice; remove the repeated lines"
        )


def _remove(path: Path) -> None:
    """Removes what an engine wrote: DuckDB writes a file, Spark a folder of files."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
