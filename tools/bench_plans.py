"""Measures plans of three workloads beside their estimates, before and after calibration.

    python tools/bench_plans.py --out runs/plans --report tools/results/plans.md

Each workload has its planner's best plan under each of several sharding settings.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR, OUTPUT_FILE
from mail_torchrec.planning.measured.measurements import spearman
from mail_torchrec.planning.measured.plots import draw_steps_measured
from tools.tool_command import ToolCommand

_SHARDINGS = (
    "[table_wise]",
    "[row_wise]",
    "[column_wise]",
    "[table_wise, row_wise]",
)
_TOWER = {"tower": "base_dnn", "tower_options": {"hidden_dims": [32, 16]}, "zero_shot": None}


def workloads(scale: float) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
    """Returns configuration and rows of tables by name.

    Args:
        scale: of the batches.
    """
    base: dict[str, Any] = {"user": {"group": "group_key"}, "clicked": {"group": "label"}}
    lists: dict[str, Any] = {
        f"tags_{number}": {"group": "item", "kind": "list", "max_length": 30} for number in range(4)
    }
    single: dict[str, Any] = {f"field_{number}": {"group": "context"} for number in range(16)}
    history: dict[str, Any] = {
        "seen": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 50},
        "item": {"group": "item"},
        "age": {"group": "attribute"},
    }
    columns = {
        "lists": (lists | {"age": {"group": "attribute"}}, 32, 512),
        "fields": (single, 64, 2048),
        "history": (history, 32, 512),
    }
    found = {}
    for name, (own, dim, batch_size) in columns.items():
        needed = own if name == "history" else own | history
        schema = {"dim": dim, "columns": base | needed}
        config = {
            "name": name,
            "data": {"root": "NONE"},
            "schema": schema,
            "model": _TOWER,
            "sharding": {"min_partition": dim // 2, "pooling_factors": _lengths(name)},
            "train": {
                "batch_size": max(16, int(scale * batch_size)),
                "device": "cpu",
                "tables": {"name": "rowwise_adagrad"},
            },
        }
        tables = {"item" if column == "seen" else column for column in needed}
        rows = {table: _rows(table) for table in sorted(tables)}
        found[name] = (config, rows)
    return found


def _lengths(name: str) -> dict[str, float]:
    """Returns mean lengths: histories are short where they are not what is measured."""
    return {} if name == "history" else {"seen": 1.0}


def _rows(table: str) -> int:
    if table.startswith("tags"):
        return 200_000
    return {"item": 500_000, "age": 2_000}.get(table, 100_000)


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder of the runs.")
@click.option("--report", type=OUTPUT_FILE, help="Markdown file; its picture lies beside it.")
@click.option("--ranks", type=click.IntRange(2), default=2, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True)
@click.option("--best", type=click.IntRange(1), default=1, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Of the batches.")
@click.option("--hardware", type=LOCAL_PATH, help="Measured before; else now.")
@click.option("--workload", "chosen", multiple=True, help="Only this one; may be repeated.")
def main(
    out: Path,
    report: Path | None,
    ranks: int,
    steps: int,
    best: int,
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
    for name, (config, rows) in workloads(scale).items():
        if chosen and name not in chosen:
            continue
        path, folder = out / f"{name}.yaml", out / name
        shutil.rmtree(folder, ignore_errors=True)
        path.write_text(yaml.safe_dump(config))
        words = ["--config", str(path), "--hardware", str(hardware), "--ranks", str(ranks)]
        words += [word for table, count in rows.items() for word in ("--rows", f"{table}={count}")]
        words += ["--measure", str(steps), "--best", str(best), "--out", str(folder)]
        words += ["--vary", f"sharding.sharding_types={';'.join(_SHARDINGS)}"]
        click.echo(_plan(*words))
        found = json.loads((folder / "measured.json").read_text())["plans"]
        plans += [plan | {"group": name} for plan in found if plan["passes"]]
    text = _report(plans, calibration)
    click.echo(text)
    target = report or out / "plans.md"
    target.write_text(text)
    draw_steps_measured(_dots(plans), target.with_suffix(".png"))


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


def _report(plans: list[dict[str, Any]], calibration: str) -> str:
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
        kind = plan["name"].partition("sharding_types=")[2].partition(" #")[0]
        lines.append(
            f"| {plan['group']} | {kind} | {plan['published_ms']['step']:.2f} | "
            f"{plan['estimate_ms']['step']:.1f} | {plan['step_ms']:.1f} | {' | '.join(parts)} |"
        )
    picture = "![Measured over estimated milliseconds a step](plans.png)"
    return "\n".join([*lines, "", picture, "", calibration.partition("\n\n")[0], ""])


if __name__ == "__main__":
    main()
