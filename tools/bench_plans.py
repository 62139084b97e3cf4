"""Measures plans of three workloads beside their estimates, before and after calibration.

    python tools/bench_plans.py --out runs/plans --report tools/results/plans.md

Each workload has the planner's best plan under each of several cuts of its tables.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR, OUTPUT_FILE
from mail_torchrec.planning.measured.measurements import spearman
from mail_torchrec.planning.measured.plots import draw_steps_measured
from tools.tool_command import ToolCommand

_TOWER = {"tower": "base_dnn", "tower_options": {"hidden_dims": [32, 16]}, "zero_shot": None}
# Rows of tables by the beginning of their names.
_ROWS = {"tags": 200_000, "item": 500_000, "shop": 500_000, "age": 2_000, "field": 100_000}
_TABLE_WISE, _ROW_WISE, _COLUMN_WISE = "table_wise", "row_wise", "column_wise"


@dataclass(frozen=True)
class Workload:
    """A model, and the cuts of its tables that are measured."""

    columns: dict[str, Any]
    dim: int
    batch_size: int
    mean_lengths: dict[str, float]
    """Of lists that are not full."""
    cuts: tuple[dict[str, str], ...]
    """Sharding type by the beginning of a table's name, the first that fits; plans lie far apart,
    so that a machine that is not quiet orders them too."""

    def tree(self, name: str, scale: float) -> dict[str, Any]:
        """Returns the configuration.

        Args:
            name: of the workload.
            scale: of the batches.
        """
        base = {"user": {"group": "group_key"}, "clicked": {"group": "label"}}
        sharding = {"min_partition": self.dim // 2, "pooling_factors": self.mean_lengths}
        train = {
            "batch_size": max(16, int(scale * self.batch_size)),
            "device": "cpu",
            "tables": {"name": "rowwise_adagrad"},
        }
        return {
            "name": name,
            "data": {"root": "NONE"},
            "schema": {"dim": self.dim, "columns": base | self.columns},
            "model": _TOWER,
            "sharding": sharding,
            "train": train,
        }

    def rows(self) -> dict[str, int]:
        """Returns the rows of tables by name."""
        tables = {column.get("table", name) for name, column in self.columns.items()}
        return {table: _first(_ROWS, table) for table in sorted(tables)}

    def vary(self) -> str:
        """Returns the option that gives every table its cut, one alternative a plan."""
        constraints = (
            {table: {"sharding_types": [_first(cut, table)]} for table in self.rows()}
            for cut in self.cuts
        )
        return f"sharding.constraints={';'.join(map(json.dumps, constraints))}"


def _first(values: dict[str, Any], name: str) -> Any:
    return next(value for start, value in values.items() if name.startswith(start))


def workloads() -> dict[str, Workload]:
    """Returns the workloads: lists that are pooled, single ids, and behaviours."""
    seen = {"group": "behaviour", "kind": "list", "table": "item", "max_length": 50}
    tags = {
        f"tags_{number}": {"group": "item", "kind": "list", "max_length": length}
        for number, length in enumerate((60, 10, 10))
    }
    fields = {f"field_{number:02}": {"group": "context"} for number in range(16)}
    item, age = {"item": {"group": "item"}}, {"age": {"group": "attribute"}}
    short = item | age | {"seen": seen | {"max_length": 5}}
    both = item | age | {"shop": {"group": "item"}, "seen": seen}
    visited = seen | {"table": "shop", "max_length": 25}
    whole, by_rows, by_columns = {"": _TABLE_WISE}, {"": _ROW_WISE}, {"": _COLUMN_WISE}
    return {
        "lists": Workload(
            short | tags,
            32,
            1024,
            {"seen": 1.0},
            (
                by_rows,
                {"tags_0": _ROW_WISE, "tags": _COLUMN_WISE} | whole,
                whole,
                {"tags_0": _COLUMN_WISE} | whole,
                by_columns,
            ),
        ),
        "fields": Workload(
            short | fields,
            64,
            4096,
            {"seen": 1.0},
            (whole, {"field_0": _COLUMN_WISE} | whole, by_rows, by_columns),
        ),
        "history": Workload(
            both | {"visited": visited},
            32,
            512,
            {},
            (by_rows, whole, {"item": _COLUMN_WISE} | by_rows, by_columns),
        ),
    }


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder of the runs.")
@click.option("--report", type=OUTPUT_FILE, help="Markdown file; its picture lies beside it.")
@click.option("--ranks", type=click.IntRange(2), default=2, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Of the batches.")
@click.option("--hardware", type=LOCAL_PATH, help="Measured before; else now.")
@click.option(
    "--workload",
    "chosen",
    type=click.Choice(list(workloads())),
    multiple=True,
    help="Only this one; may be repeated.",
)
def main(
    out: Path,
    report: Path | None,
    ranks: int,
    steps: int,
    scale: float,
    hardware: Path | None,
    chosen: tuple[str, ...],
) -> None:
    """Calibrate, measure plans of three workloads, and write one table and picture."""
    out.mkdir(parents=True, exist_ok=True)
    calibration = ""
    if hardware is None:
        hardware = out / "hardware.json"
        calibration = _plan("--calibrate", str(hardware), "--ranks", str(ranks))
    plans: list[dict[str, Any]] = []
    for name, workload in workloads().items():
        if chosen and name not in chosen:
            continue
        path, folder = out / f"{name}.yaml", out / name
        shutil.rmtree(folder, ignore_errors=True)
        path.write_text(yaml.safe_dump(workload.tree(name, scale)))
        words = ["--config", str(path), "--hardware", str(hardware), "--ranks", str(ranks)]
        rows = (f"{table}={count}" for table, count in workload.rows().items())
        words += [word for text in rows for word in ("--rows", text)]
        words += ["--measure", str(steps), "--best", "1", "--out", str(folder)]
        words += ["--vary", workload.vary()]
        click.echo(_plan(*words))
        found = json.loads((folder / "measured.json").read_text())["plans"]
        plans += [plan | {"group": name} for plan in found if plan["passes"]]
    target = report or out / "plans.md"
    picture = target.with_suffix(".png")
    text = report_text(plans, calibration, picture.name)
    click.echo(text)
    target.write_text(text)
    draw_steps_measured(_dots(plans), picture)


def _plan(*words: str) -> str:
    """Runs the command, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mail_torchrec", "plan", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"plan {' '.join(words)} failed: {done.stdout}")
    return done.stdout


def _dots(plans: list[dict[str, Any]]) -> list[tuple[str, float, float, float]]:
    """Returns workload, published and calibrated estimate, and measured ms of each plan."""
    return [
        (
            plan["group"],
            plan["published_ms"]["step"],
            plan["estimate_ms"]["step"],
            plan["step_ms"],
        )
        for plan in plans
    ]


def report_text(plans: list[dict[str, Any]], calibration: str, picture: str) -> str:
    """Formats the rank correlations and the plans of all workloads.

    Args:
        plans: as ``measured.json`` has them, each with its workload as ``group``.
        calibration: what the calibration printed; its first paragraph ends the report.
        picture: file name of the picture beside the report.
    """
    lines = [
        "# Plans: estimate beside measurement",
        "",
        "| workload | plans | Spearman by published figures | by measured rates |",
        "| --- | ---: | ---: | ---: |",
    ]
    names = list(dict.fromkeys(plan["group"] for plan in plans))
    for name in [*names, "all"]:
        dots = [dot for dot in _dots(plans) if name in (dot[0], "all")]
        measured = [dot[3] for dot in dots]
        found = (
            spearman(estimates, measured)
            for estimates in ([dot[1] for dot in dots], [dot[2] for dot in dots])
        )
        cells = ["" if value is None else f"{value:.2f}" for value in found]
        lines.append(f"| {name} | {len(dots)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| workload | plan | published ms | calibrated ms | measured ms | lookup, calibrated / "
        "measured | communication |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for plan in plans:
        parts = [
            f"{plan['estimate_ms'][part]:.1f} / {min(one[key] for one in plan['passes']):.1f}"
            for part, key in (("lookup", "lookup_ms"), ("communication", "communication_ms"))
        ]
        lines.append(
            f"| {plan['group']} | {plan['tables']} | {plan['published_ms']['step']:.2f} | "
            f"{plan['estimate_ms']['step']:.1f} | {plan['step_ms']:.1f} | {' | '.join(parts)} |"
        )
    shown = f"![Measured over estimated milliseconds a step]({picture})"
    return "\n".join([*lines, "", shown, "", calibration.partition("\n\n")[0], ""])


if __name__ == "__main__":
    main()
