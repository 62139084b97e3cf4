"""New items, simulated by withheld ids: what their content recovers of what their ids are worth.

    python tools/new_items.py --config launch/configs/kuairand.yaml --out runs/items --seeds 3

Each run trains with the ids of a few items withheld, and tests with those of many
(``data.cold_start.items``); the oracle shows all of them. Intervals are 95 %, over users and seeds.
What is finished is kept: the same command goes on where it was stopped (runs of other settings are
refused), and the table is written after every seed. The methods are described in
``mail_torchrec/model/virtual_items/README.md``.
"""

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR, OVERRIDES
from mail_torchrec.config import load_config
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.bootstrap import (
    BootstrappedMetrics,
    bootstrap,
    headroom_recovered,
    paired_difference,
)
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.run_files import write_file
from tools.kept_runs import train_once
from tools.tool_command import ToolCommand

BASE, ORACLE = "base", "oracle"
METHODS: Mapping[str, list[str]] = {
    BASE: [],
    "mean fill": ["model.virtual_items={fill: mean}"],
    "dropout": ["model.virtual_items={fill: mean, dropout: 0.2}"],
    "virtual": ["model.virtual_items={}"],
    "virtual + dropout": ["model.virtual_items={dropout: 0.2}"],
    "virtual + ranking": ["model.virtual_items={ranking_weight: 1.0}"],
    "clcrec": [
        "model.virtual_items={mse_weight: 0, contrast: {weight: 0.5}, ranking_weight: 0.5, "
        "dropout: 0.5}"
    ],
    "aldi": ["model.virtual_items={mse_weight: 0, ranking_weight: 1.0, distillation: {}}"],
    "content proxy": [
        "model.virtual_items={mse_weight: 0, ranking_weight: 1.0, contrast: {steps: 75}}"
    ],
    ORACLE: ["data.cold_start.items.oracle=true"],
}
"""Overrides of each method."""


def run_method(config: Path, common: list[str], name: str, seed: int, run_dir: Path) -> Path:
    """Trains a method, unless it is finished; returns the folder of its predictions."""
    own = [f"name={name}", f"train.seed={seed}", "train.save_predictions=true"]
    train_once(load_config(config, [*common, *METHODS[name], *own]), RunDir(run_dir))
    return RunDir(run_dir).predictions


def by_items(folder: Path) -> Predictions:
    """Reads predictions, with items in the place of users: ``new`` means a new item's row."""
    table = pq.read_table(folder)
    columns = (table[name].to_numpy() for name in ("logit", "label", "user", "is_new_item"))
    return Predictions.from_columns(*columns)


def table_of(folders: Mapping[str, list[Path]], shares: str, resamples: int) -> str:
    """Formats the results of predictions of each method, one folder a seed."""
    found = bootstrap({name: map(by_items, each) for name, each in folders.items()}, resamples)
    is_new_R = by_items(folders[BASE][0]).is_new_R
    head = (
        f"{len(is_new_R):,} test rows, {np.count_nonzero(is_new_R):,} of new items; {shares}; "
        f"seeds: {len(folders[BASE])}; {resamples} resamples.\n\n"
    )
    return head + report(found)


def report(found: Mapping[str, BootstrappedMetrics]) -> str:
    """Formats AUC and GAUC of new and old items, and what each method gains over the base."""
    rows = []
    for name, metrics in found.items():
        row = [name, *(_text(metrics[cohort]["auc"].interval()) for cohort in ("new", "old"))]
        row.append(_text(metrics["new"]["gauc"].interval()))
        for cohort in ("new", "old"):
            row.append(_text(paired_difference(metrics[cohort]["auc"], found[BASE][cohort]["auc"])))
        parts = (each["new"]["auc"] for each in (metrics, found[BASE], found[ORACLE]))
        rows.append([*row, _text(headroom_recovered(*parts), digits=2)])
    header = ["method", "AUC new items", "AUC old items", "GAUC new items"]
    header += ["new items, less base", "old items, less base", "headroom recovered"]
    return markdown_table(header, rows)


def _text(interval: Interval | None, digits: int = 4) -> str:
    if interval is None:
        return "-"
    ends = [end for end in (interval.low, interval.high) if end is not None]
    inner = ", ".join(f"{end:.{digits}f}" for end in ends)
    return f"{interval.mean:.{digits}f} [{inner}]"


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=LOCAL_PATH, required=True)
@click.option("--out", type=OUTPUT_DIR, required=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--train-share", type=float, default=0.02, show_default=True)
@click.option("--test-share", type=float, default=0.4, show_default=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True)
@click.option("--resamples", type=click.IntRange(1), default=500, show_default=True)
@OVERRIDES
def main(
    config: Path,
    out: Path,
    seeds: int,
    train_share: float,
    test_share: float,
    methods: tuple[str, ...],
    resamples: int,
    overrides: tuple[str, ...],
) -> None:
    """Train each method on withheld ids, and compare on the rows of new items."""
    common = [
        f"data.cold_start.items={{train_share: {train_share}, test_share: {test_share}}}",
        "data.new_items={max_count: 0}",
        *("data.cold_start.hide_share=0", "model.zero_shot=null"),
        *overrides,
    ]
    names = dict.fromkeys((BASE, *(methods or METHODS), ORACLE))
    folders: dict[str, list[Path]] = {name: [] for name in names}
    shares = f"{train_share:g} of the items withheld in training, {test_share:g} in test"
    for seed in range(1, seeds + 1):
        for name in names:
            run_dir = out / f"{name.replace(' ', '-')}-{seed}"
            folders[name].append(run_method(config, common, name, seed, run_dir))
        page = table_of(folders, shares, resamples)
        write_file(out / "new_items.md", page)
        click.echo(page)


if __name__ == "__main__":
    main()
