"""Measures `apply` of a delta of some rows to a model with one large table.

    python tools/bench_apply.py --rows 16_000_000 --dim 32 --share 0.01 --out FOLDER

Trains a step of BaseDNN on a few random rows, its item table hashed into so many rows, and exports
the run with spare rows; continues it on rows that look up another share of the table; exports the
delta, and applies it several times. The peak memory of each command is what the operating system
counted.
"""

import json
import shutil
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mail_torchrec.cli.options import OUTPUT_DIR
from tools.measure_export import MIB, config, run_command, write_rows
from tools.tool_command import ToolCommand

_IDS = 20
"""Different items that a row of the second day looks up, beside its target item."""


def write_second_day(folder: Path, num_items: int) -> None:
    """Writes impressions whose histories and items are so many different ids."""
    random, num_rows = np.random.default_rng(1), num_items // (_IDS + 1)
    ids = random.choice(10**12, num_rows * (_IDS + 1), replace=False).reshape(num_rows, -1)
    columns = {
        "user": random.integers(0, 50, num_rows),
        "clicked": random.integers(0, 2, num_rows),
        "age": random.integers(0, 5, num_rows),
        "seen": ids[:, 1:].tolist(),
        "item": ids[:, 0],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")


def prepare(out: Path, rows: int, dim: int, share: float) -> dict[str, Path]:
    """Trains both days and exports the first one, where that is not done yet."""
    runs = {day: out / f"run-{day}-{rows}x{dim}" for day in ("first", "second")}
    models = out / f"models-{rows}x{dim}"
    if not (runs["first"] / "metrics.json").exists():
        for part in ("train", "test"):
            write_rows(out / "rows" / part, 256)
        write_second_day(out / "rows/second", int(rows * share))
        tree = config(out / "rows", rows, dim, {"tower": "base_dnn"})
        (out / "config.yaml").write_text(yaml.safe_dump(tree))
        of_run = ("--config", str(out / "config.yaml"), "--run-dir", str(runs["first"]))
        run_command("train", *of_run)
    if not (runs["second"] / "metrics.json").exists():
        of_run = ("--continue", str(runs["first"]), "--run-dir", str(runs["second"]))
        run_command("train", *of_run, "data.train=second", "train.batch_size=1024")
    if not (models / "first").exists():
        target = ("--out", str(models / "first"), "--spare", "0.1")
        run_command("export", "--run-dir", str(runs["first"]), *target)
    return runs | {"models": models}


@click.command(cls=ToolCommand)
@click.option("--rows", type=int, default=16_000_000, show_default=True)
@click.option("--dim", type=int, default=32, show_default=True)
@click.option("--share", default=0.01, show_default=True, help="Share of the rows that change.")
@click.option("--repeats", default=3, show_default=True, help="How often the delta is applied.")
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder for rows, runs and models; runs there are used again.",
)
def main(rows: int, dim: int, share: float, repeats: int, out: Path) -> None:
    """Print sizes, seconds and peak memory as JSON."""
    paths = prepare(out, rows, dim, share)
    delta, full = out / "delta", out / "full"
    for folder in (delta, full):
        shutil.rmtree(folder, ignore_errors=True)
    of_run = ("export", "--run-dir", str(paths["second"]))
    base = str(paths["models"] / "first")
    took = {
        "full export": _timed(*of_run, "--out", str(full), "--spare", "0.1"),
        "delta's export": _timed(*of_run, "--out", str(delta), "--delta-of", base),
    }
    for number in range(repeats):
        shutil.rmtree(paths["models"] / delta.name, ignore_errors=True)
        took[f"apply, {number + 1}"] = _timed("apply", str(delta), "--models", str(paths["models"]))
    changed = json.loads((delta / "delta.json").read_text())["tables"]["item"]["num_changed"]
    result = {
        "table_mib": rows * dim * 4 // MIB,
        "changed_rows": changed,
        "full_mib": _bytes(full) // MIB,
        "delta_mib": _bytes(delta) // MIB,
        **took,
    }
    click.echo(json.dumps(result, indent=1))


def _timed(*words: str) -> dict[str, float]:
    start = time.perf_counter()
    peak = run_command(*words)
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mib": peak // MIB}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
