"""``mail-torchrec prepare``: read each file once, split it by user, then make the rows of one bucket of users after the other."""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mail_torchrec.prepare.alimama import ALIMAMA
from mail_torchrec.prepare.dataset import Dataset, Tables
from mail_torchrec.prepare.engine import Engine, open_engine
from mail_torchrec.prepare.files import MALFORMED_BUCKET, Counts, RawFile
from mail_torchrec.prepare.kuairand import KUAIRAND
from mail_torchrec.prepare.movielens import MOVIELENS
from mail_torchrec.prepare.settings import PrepareSettings
from mail_torchrec.prepare.steps import Record, Steps
from mail_torchrec.utils.file_lock import LOCK, locked

DATASETS = {"alimama": ALIMAMA, "kuairand": KUAIRAND, "movielens": MOVIELENS}
BUCKET_BYTES = 256 * 2**20
PARTS = ("train", "test")
_WORK = ".work"


def prepare(name: str, settings: PrepareSettings, raw: Path, out: Path) -> Record:
    """Writes ``out``: ``train/`` and ``test/`` (Parquet), ``config.yaml``, and last ``prepared.json``, which is returned.

    Stopped half way, the same call goes on from there.

    Raises:
        ValueError: a file is missing, empty, of another layout or too malformed; ``out`` holds
            something else, was begun with other settings or files, or another process is at it;
            there are no training rows; the engine fails.
    """
    dataset = DATASETS[name]
    paths = {file: file.find(raw, dataset.folders) for file in dataset.files}
    size = sum(path.stat().st_size for path in paths.values())
    buckets = settings.buckets or -(-size // BUCKET_BYTES)
    inputs: Record = {
        "dataset": name,
        "engine": settings.engine.value,
        "history": settings.history,
        "test_days": settings.test_days,
    }
    inputs |= {
        "buckets": buckets,
        "files": {file.name: _identity(path) for file, path in paths.items()},
    }
    with locked(out):
        if _is_finished(out, inputs):
            finished: Record = json.loads((out / "prepared.json").read_text())
            return finished
        return _run(dataset, settings, inputs, paths, raw, out)


def _run(
    dataset: Dataset,
    settings: PrepareSettings,
    inputs: Record,
    paths: dict[RawFile, Path],
    raw: Path,
    out: Path,
) -> Record:
    """Step by step, each once."""
    buckets = inputs["buckets"]
    with (
        closing(open_engine(settings, out / _WORK / "spill")) as engine,
        Steps(out / _WORK, len(paths) + 1 + buckets, engine.progress) as steps,
    ):
        for file, path in paths.items():
            counts = steps.do(f"read-{file.name}", partial(_read, engine, file, path, buckets))
            Counts(counts["rows"], counts["malformed"], counts["example"]).check(
                str(path), settings.max_malformed
            )
        tables = {
            file.name: engine.stored(steps.folder(f"read-{file.name}") / "parts", file.stored)
            for file in paths
        }
        days = steps.do("days", lambda _: _days(engine, dataset, _of_bucket(dataset, tables, None)))
        first_test_day = days["last"] - settings.test_days + 1
        if days["first"] >= first_test_day:
            raise ValueError(
                f"{raw}: all impressions lie in the last {settings.test_days} days, which are for "
                "testing; choose fewer with --test-days, "
                "or give files of more days"
            )
        for bucket in range(buckets):
            part = _of_bucket(dataset, tables, bucket)
            steps.do(
                f"rows-{bucket:05}",
                partial(_rows, engine, dataset, part, settings.history, first_test_day),
            )
        return _publish(dataset, settings.history, out, inputs, steps, engine.version)


def summary(prepared: Record, out: Path) -> str:
    """What went in, what came out, what it took, and what to do next."""
    lines = [
        f"{name}: {counts['rows']:,} lines, and {counts['malformed']:,} malformed"
        for name, counts in prepared["files"].items()
    ]
    rows, peak = prepared["rows"], prepared["peak_rss_bytes"] / 1e9
    lines.append(
        f"{out}: {rows['impressions']:,} impressions in; {rows['train']:,} rows in train/, "
        f"{rows['test']:,} in test/"
    )
    lines.append(
        f"{prepared['seconds']:,} s, {prepared['lines_per_second']:,} lines/s, peak memory (RSS "
        f"of this process) {peak:.2f} GB"
    )
    return "\n".join(
        [
            *lines,
            f"mail-torchrec train --config {out / 'config.yaml'} --run-dir "
            f"runs/{prepared['inputs']['dataset']}",
        ]
    )


def _identity(path: Path) -> list[int]:
    """Size and time of change, which tell whether a file is still the same."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_finished(out: Path, inputs: Record) -> bool:
    """Whether ``out`` is ready; claims it for these inputs where nobody has.

    Raises:
        ValueError: it was begun with other inputs, or holds something else.
    """
    for path in (out / "prepared.json", out / _WORK / "begun.json"):
        if path.is_file():
            begun = json.loads(path.read_text())["inputs"]
            keys = [key for key in inputs if key != "files" and begun.get(key) != inputs[key]]
            files = [
                name
                for name, identity in inputs["files"].items()
                if begun["files"].get(name, identity) != identity
            ]
            if other := [
                *(f"{key} was {begun.get(key)}, now {inputs[key]}" for key in keys),
                *(f"{name} has changed" for name in files),
            ]:
                raise ValueError(
                    f"'{out}' was begun with other settings or files: {'; '.join(other)}; choose "
                    "another --out, or delete it"
                )
            return path.name == "prepared.json"
    if others := set(os.listdir(out)) - {_WORK, LOCK}:
        raise ValueError(
            f"'{out}' should be empty or not exist, it holds {sorted(others)[:5]}; choose another "
            "--out"
        )
    (out / _WORK).mkdir(parents=True, exist_ok=True)
    _write_whole(out / _WORK / "begun.json", json.dumps({"inputs": inputs}))
    return False


def _read(engine: Engine, file: RawFile, path: Path, buckets: int, folder: Path) -> Record:
    """Text -> Parquet by bucket, and the counts of lines."""
    engine.write(
        file.parsed(engine.lines(path, header=file.header), buckets), folder / "parts", by="bucket"
    )
    if not any(folder.glob("parts/*/*.parquet")):  # not one line below the header
        return {"rows": 0, "malformed": 0, "example": None}
    parts = engine.stored(folder / "parts", file.stored)
    bad = (parts.bucket == MALFORMED_BUCKET).cast("int64")
    [(rows, malformed, example)] = engine.rows(
        parts.aggregate(rows=parts.count(), bad=bad.sum(), example=parts.malformed.max())
    )
    return {"rows": rows - malformed, "malformed": malformed, "example": example}


def _of_bucket(dataset: Dataset, tables: Tables, bucket: int | None) -> Tables:
    """The good lines of one bucket, or of all; files that are not split by user are whole in each."""
    chosen = {}
    for file in dataset.files:
        table = tables[file.name]
        keep = (
            table.bucket != MALFORMED_BUCKET
            if bucket is None or file.key is None
            else table.bucket == bucket
        )
        chosen[file.name] = table.filter(keep).drop("bucket", "malformed")
    return chosen


def _days(engine: Engine, dataset: Dataset, tables: Tables) -> Record:
    time = dataset.impressions(tables).time
    [(first, last)] = engine.rows(
        time.as_table().aggregate(first=dataset.day(time).min(), last=dataset.day(time).max())
    )
    return {"first": first, "last": last}


def _rows(
    engine: Engine,
    dataset: Dataset,
    tables: Tables,
    history: int,
    first_test_day: int,
    folder: Path,
) -> Record:
    """The rows of one bucket of users, in order of time."""
    impressions = dataset.impressions(tables)
    [(expected,)] = engine.rows(impressions.aggregate(rows=impressions.count()))
    rows = dataset.rows(impressions, tables, history).drop("user")
    rows = rows.mutate(is_test=dataset.day(rows.time) >= first_test_day)
    engine.write(rows, folder / "rows")
    stored = engine.stored(
        folder / "rows", {column: str(kind) for column, kind in rows.schema().items()}
    )
    scalars = [
        "time",
        *(
            column
            for column, kind in rows.schema().items()
            if not kind.is_array() and column != "time"
        ),
    ]
    counts: dict[str, int] = {}
    for part in PARTS:
        chosen = stored.filter(stored.is_test == (part == "test"))
        engine.write(chosen.order_by(scalars).drop("is_test"), folder / part)
        [(counts[part],)] = engine.rows(chosen.aggregate(rows=chosen.count()))
    _remove(folder / "rows")
    if sum(counts.values()) != expected:
        raise ValueError(
            f"{expected} impressions became {sum(counts.values())} rows: a file that should hold "
            "each user, item or ad once "
            "holds one twice; remove the repeated lines"
        )
    return {"impressions": expected} | counts


def _publish(
    dataset: Dataset, history: int, out: Path, inputs: Record, steps: Steps, version: str
) -> Record:
    """Moves the rows into place, and writes the configuration and the record of it all; the last thing written ends the preparation."""
    rows = {
        part: sum(
            record[part] for name, record in steps.records.items() if name.startswith("rows-")
        )
        for part in ("impressions", *PARTS)
    }
    for part in PARTS:
        (out / part).mkdir(exist_ok=True)
        for name, record in steps.records.items():
            source = steps.folder(name) / part
            if (
                record.get(part) and source.exists()
            ):  # not there: moved by a run that was stopped after it
                os.replace(source, out / part / f"{name.removeprefix('rows-')}.parquet")
    _write_whole(out / "config.yaml", config_text(dataset, inputs["dataset"], history, out))
    files = {
        file.name: {key: steps.records[f"read-{file.name}"][key] for key in ("rows", "malformed")}
        for file in dataset.files
    }
    seconds = sum(record["seconds"] for record in steps.records.values())
    lines = sum(counts["rows"] + counts["malformed"] for counts in files.values())
    prepared = {
        "inputs": inputs,
        "engine": version,
        "files": files,
        "rows": rows,
        "seconds": round(seconds, 1),
    }
    prepared |= {
        "lines_per_second": round(lines / seconds),
        "peak_rss_bytes": max(step["peak_rss_bytes"] for step in steps.records.values()),
    }
    _write_whole(
        out / "prepared.json", json.dumps(prepared | {"steps": steps.records}, indent=2) + "\n"
    )
    shutil.rmtree(out / _WORK)
    return prepared


def config_text(dataset: Dataset, name: str, history: int, out: Path) -> str:
    """The complete configuration, the paper's setting, for rows in ``out``."""
    tree: dict[str, Any] = {
        "name": "MAIL-DMR",
        "data": {"root": str(out.resolve()), "cold_start": {"hide_share": 0.4}},
    }
    sections = dataset.config(history)
    tree |= {
        "schema": sections["schema"],
        "model": {"tower": "dmr", "zero_shot": {"variant": "full"}},
        "train": sections["train"],
    }
    head = [f"Written by mail-torchrec prepare {name}.", *dataset.about.splitlines()]
    return _comment(head) + yaml.safe_dump(
        tree, sort_keys=False, width=140, default_flow_style=None
    )


def _comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is either not there or complete."""
    half = path.with_name(f".{path.name}.half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def _remove(path: Path) -> None:
    """DuckDB writes a file, Spark a folder of files."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
