"""Publishes prepared rows: moves them into place and writes the configuration and the record."""

import json
import os
import shutil
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from mail_torchrec.prepare.dataset import DatasetSpec
from mail_torchrec.prepare.output_folder import RECORD_NAME, WORK_FOLDER, write_atomically
from mail_torchrec.prepare.resumable_steps import ResumableSteps, StepRecord

PARTS = ("train", "test")
_ROWS_PREFIX = "rows-"
_FILE_COUNTS = ("rows", "malformed", "unlikely_times", "blank", "ends_with_newline")


def publish(
    dataset: DatasetSpec, inputs: StepRecord, out: Path, steps: ResumableSteps, engine_version: str
) -> StepRecord:
    """Moves the rows into place, and writes ``config.yaml`` and ``prepared.json``.

    ``prepared.json`` is written last: where it exists the preparation is finished.
    """
    for part in PARTS:
        _move_rows(steps, part, out)
    text = config_text(dataset, inputs["dataset"], inputs["history"], out)
    write_atomically(out / "config.yaml", text)
    prepared = _prepared_record(dataset, inputs, steps, engine_version)
    text = json.dumps(prepared | {"steps": steps.records}, indent=2) + "\n"
    write_atomically(out / RECORD_NAME, text)
    shutil.rmtree(out / WORK_FOLDER)
    return prepared


def config_text(dataset: DatasetSpec, name: str, history: int, out: Path) -> str:
    """Formats the complete configuration, in the paper's setting, for rows in ``out``."""
    sections = dataset.build_config(history)
    tree: dict[str, Any] = {
        "name": "MAIL-DMR",
        "data": {"root": str(out.resolve()), "cold_start": {"hide_share": 0.4}},
        "schema": sections["schema"],
        "model": {"tower": "dmr", "zero_shot": {"variant": "full"}},
        "train": sections["train"],
    }
    head = [f"Written by mail-torchrec prepare {name}.", *dataset.about.splitlines()]
    text = yaml.safe_dump(tree, sort_keys=False, width=140, default_flow_style=None)
    return _comment(head) + text


def summary(prepared: StepRecord, out: Path) -> str:
    """Formats the counts, the time and memory taken, and the command to train on the result."""
    range_ = " to ".join(prepared["inputs"]["time_range"])
    lines = [_file_summary(name, counts, range_) for name, counts in prepared["files"].items()]
    rows, peak = prepared["rows"], prepared["peak_rss_bytes"] / 1e9
    name = prepared["inputs"]["dataset"]
    lines += [
        f"{out}: {rows['impressions']:,} impressions in; {rows['train']:,} rows in train/, "
        f"{rows['test']:,} in test/",
        "; ".join(f"{part}/ {' to '.join(days)}" for part, days in prepared["days"].items()),
        f"{prepared['seconds']:,} s, {prepared['lines_per_second']:,} lines/s, peak memory (RSS "
        f"of this process) {peak:.2f} GB",
        f"mail-torchrec train --config {out / 'config.yaml'} --run-dir runs/{name}",
    ]
    return "\n".join(lines)


def _file_summary(name: str, counts: StepRecord, time_range: str) -> str:
    text = f"{name}: {counts['rows']:,} lines, and {counts['malformed']:,} malformed"
    if unlikely := counts["unlikely_times"]:
        text += f" ({unlikely:,} by a time outside {time_range})"
    if not counts["ends_with_newline"]:
        text += "; the last line has no line feed: it is cut where the file is not whole"
    return text


def _move_rows(steps: ResumableSteps, part: str, out: Path) -> None:
    """Moves the rows of all buckets; those moved before an interruption are no longer there."""
    (out / part).mkdir(exist_ok=True)
    for name, record in steps.records.items():
        source = steps.folder(name) / part
        if record.get(part) and source.exists():
            os.replace(source, out / part / f"{name.removeprefix(_ROWS_PREFIX)}.parquet")


def _prepared_record(
    dataset: DatasetSpec, inputs: StepRecord, steps: ResumableSteps, engine_version: str
) -> StepRecord:
    records = steps.records
    buckets = [record for name, record in records.items() if name.startswith(_ROWS_PREFIX)]
    read = {file.name: records[f"read-{file.name}"] for file in dataset.files}
    files = {name: {key: found[key] for key in _FILE_COUNTS} for name, found in read.items()}
    days = records["days"]
    first_test_day = days["last"] - inputs["test_days"] + 1
    days_of = {
        "train": [_date(days["first"]), _date(first_test_day - 1)],
        "test": [_date(first_test_day), _date(days["last"])],
    }
    seconds = sum(record["seconds"] for record in records.values())
    num_lines = sum(counts["rows"] + counts["malformed"] for counts in files.values())
    return {
        "inputs": inputs,
        "engine": engine_version,
        "files": files,
        "rows": {part: sum(found[part] for found in buckets) for part in ("impressions", *PARTS)},
        "days": days_of,
        "seconds": round(seconds, 1),
        "lines_per_second": round(num_lines / seconds),
        "peak_rss_bytes": max(record["peak_rss_bytes"] for record in records.values()),
    }


def _date(day_number: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day_number)).isoformat()


def _comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)
