"""Measures peak memory and time of ``export`` or ``vectors`` with one large table.

    python tools/measure_export.py --rows 10_000_000 --dim 64 --out FOLDER
    python tools/measure_export.py --rows 10_000_000 --dim 32 --vectors --out FOLDER

Trains one step of BaseDNN (DMR for vectors, which has a second such table) on a few random rows,
its item table hashed into so many rows and stored as one part, and exports the run in a process of
its own, whose peak resident memory is what the operating system counted.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mail_torchrec.cli.options import OUTPUT_DIR
from tools.tool_command import ToolCommand

MIB = 2**20


def write_rows(folder: Path, num_rows: int) -> None:
    """Writes random impressions."""
    random = np.random.default_rng(0)
    columns = {
        "user": random.integers(0, 50, num_rows),
        "clicked": random.integers(0, 2, num_rows),
        "age": random.integers(0, 5, num_rows),
        "seen": [random.integers(0, 10**9, 1 + i % 9).tolist() for i in range(num_rows)],
        "item": random.integers(0, 10**9, num_rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")


def config(root: Path, rows: int, dim: int, tower: dict[str, Any]) -> dict[str, Any]:
    """Configures a tower with one large table."""
    return {
        "name": "large",
        "data": {"root": str(root)},
        "schema": {
            "dim": dim,
            "columns": {
                "user": {"group": "group_key"},
                "clicked": {"group": "label"},
                "age": {"group": "attribute"},
                "seen": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 20},
                "item": {"group": "item"},
            },
            "tables": {"item": {"ids": "hash", "rows": rows}},
        },
        "model": tower | {"zero_shot": {"encoder_dims": [64, 32], "decoder_dims": [64]}},
        "train": {"batch_size": 256, "device": "cpu", "tables": {"name": "rowwise_adagrad"}},
        "checkpoint": {"every": 0, "mode": "sync"},
    }


@click.command(cls=ToolCommand)
@click.option("--rows", type=int, default=10_000_000, show_default=True)
@click.option("--dim", type=int, default=64, show_default=True)
@click.option("--tables", default="float32", show_default=True, help="float32, float16 or int8.")
@click.option(
    "--vectors",
    is_flag=True,
    help="Train DMR, and measure its item vectors and their index instead of the export.",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    required=True,
    help="Folder for rows, run and models; a run there is used again.",
)
def main(rows: int, dim: int, tables: str, vectors: bool, out: Path) -> None:
    """Print size, seconds and peak memory as JSON."""
    tower = (
        {"tower": "dmr", "tower_options": {"negatives": "uniform"}}
        if vectors
        else {"tower": "base_dnn"}
    )
    run = out / f"run-{tower['tower']}-{rows}x{dim}"
    if not (run / "metrics.json").exists():
        for part in ("train", "test"):
            write_rows(out / "rows" / part, 256)
        (out / "config.yaml").write_text(yaml.safe_dump(config(out / "rows", rows, dim, tower)))
        run_command("train", "--config", str(out / "config.yaml"), "--run-dir", str(run))
    model = out / f"model-{tables}-{os.getpid()}"
    start = time.perf_counter()
    peak = run_command("export", "--run-dir", str(run), "--out", str(model), "--tables", tables)
    if vectors:
        pq.write_table(pa.table({"item": np.arange(rows)}), out / "items.parquet")
        start, files = time.perf_counter(), out / f"vectors-{os.getpid()}"
        peak = run_command(
            "vectors",
            "--model",
            str(model),
            "--items",
            str(out / "items.parquet"),
            "--out",
            str(files),
        )
        print(
            json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_mib": peak // MIB})
        )
        return
    result = {
        "table_mib": rows * dim * 4 // MIB,
        "artefact_mib": sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        // MIB,
        "peak_mib": peak // MIB,
        "above_table_mib": (peak - rows * dim * 4) // MIB,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(result))


def run_command(*arguments: str) -> int:
    """Runs a command of this project; returns its peak resident memory in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "mail_torchrec", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(code)
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
