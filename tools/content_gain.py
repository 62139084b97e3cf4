"""Gain of content vectors on the shop's log: trains with and without them, and compares the runs.

    python tools/shop_log.py --out runs/shop --rows 60000
    python tools/content_gain.py --log runs/shop --out runs/content

Methods, each with several seeds, trained on all days but the last two and tested on these:
``none``, ``vectors`` (the item's content as a column), ``init_from`` (the item table begins with
it), ``both``, and ``both_scaled`` (the table begins with a tenth of it). What they cost in time and
memory is measured by ``bench_columns.py``.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from mail_torchrec.cli import main as mail_torchrec
from mail_torchrec.config import Config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tools.shop import VECTOR_DIM
from tools.tool_command import ToolCommand

_VECTORS = "item_vectors.parquet"
CONTENT = {"content": {"group": "item", "kind": "vector"}}
BEGUN = {"item": {"init_from": {"path": _VECTORS, "id": "item_id", "vector": "content"}}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "vectors": (CONTENT, {}),
    "init_from": ({}, BEGUN),
    "both": (CONTENT, BEGUN),
    "both_scaled": (CONTENT, {"item": {"init_from": BEGUN["item"]["init_from"] | {"scale": 0.1}}}),
}
"""Columns and tables that each method adds to the schema."""
COLUMNS: dict[str, Any] = {
    "user": {"group": "group_key", "column": "user_id"},
    "clicked": {"group": "label"},
    "weight": {"group": "weight"},
    **{name: {"group": "attribute"} for name in ("age", "city", "plus")},
    "seen": {"group": "behaviour", "kind": "list", "column": "seen_item", "table": "item"},
    "hour": {"group": "context"},
    "item": {"group": "item", "column": "item_id"},
    **{name: {"group": "item"} for name in ("category", "brand")},
    "price": {"group": "item", "kind": "numeric", "transform": "log"},
}
"""Columns of every method."""


def configuration(log: Path, method: str, seed: int) -> Config:
    """Returns the configuration of one run.

    Args:
        log: folder that ``shop_log.py`` wrote.
        method: one of :data:`METHODS`.
        seed: of the run.
    """
    columns, tables = METHODS[method]
    days = sorted(str(day.relative_to(log)) for day in (log / "rows").iterdir())
    return Config.model_validate(
        {
            "name": method,
            "data": {"root": str(log), "train": days[:-2], "test": days[-2:]},
            "schema": {"dim": VECTOR_DIM, "columns": COLUMNS | columns, "tables": tables},
            "model": {
                "tower": "base_dnn",
                "tower_options": {"hidden_dims": [64, 32], "dropout": 0.2},
                "zero_shot": None,
            },
            "train": {"batch_size": 256, "epochs": 2, "seed": seed, "log_every": 20},
        }
    )


def write_item_vectors(log: Path) -> None:
    """Writes the vector of each item once; the catalogue has a row for each of its versions."""
    items = pq.read_table(log / "items.parquet", columns=["item_id", "content"])
    _, first = np.unique(items["item_id"].to_numpy(), return_index=True)
    pq.write_table(items.take(first), log / _VECTORS)


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log", type=Path, required=True)
@click.option("--out", type=Path, required=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True)
def main(log: Path, out: Path, seeds: int, methods: tuple[str, ...]) -> None:
    """Train with and without content vectors, and compare."""
    write_item_vectors(log)
    names = dict.fromkeys(("none", *(methods or METHODS)))
    for seed in range(seeds):
        for name in names:
            train(configuration(log, name, seed), RunDir(out / f"{name}-{seed}"))
    runs = [str(out / f"{name}-{seed}") for name in names for seed in range(seeds)]
    mail_torchrec(["compare", *runs, "--base", "none", "--out", str(out / "comparison")])


if __name__ == "__main__":
    main()
