"""Writes a configuration with hundreds of tables, as a test of ``mail-torchrec plan``.

    python tools/many_tables.py --tables 500 --out many.yaml
    mail-torchrec plan --config many.yaml --hardware h100 --ranks 256 --out runs/many

Sizes are log-uniform between a thousand and a hundred million rows, as those of industrial models
are spread; one field in ten is a list.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from mail_torchrec.cli.options import OUTPUT_FILE
from tools.tool_command import ToolCommand


def many_tables(num_tables: int, seed: int = 0) -> dict[str, Any]:
    """Builds the configuration; an item table with its behaviours is among the tables."""
    rows = (
        np.exp(np.random.default_rng(seed).uniform(np.log(1e3), np.log(1e8), num_tables))
        .astype(int)
        .tolist()
    )
    fields = [f"field_{number:03}" for number in range(1, num_tables)]
    columns: dict[str, Any] = {"user": {"group": "group_key"}, "clicked": {"group": "label"}}
    columns |= {
        "seen": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 50},
        "item": {"group": "item"},
    }
    for number, name in enumerate(fields):
        group = ("attribute", "context", "item")[number % 3]
        columns[name] = {"group": group} | (
            {"kind": "list", "max_length": 20} if number % 10 == 9 else {}
        )
    sizes = dict(zip(["item", *fields], rows, strict=True))
    return {
        "name": f"{num_tables} tables",
        "data": {"root": "DATA"},
        "schema": {
            "dim": 64,
            "columns": columns,
            "tables": {name: {"ids": "hash", "rows": number} for name, number in sizes.items()},
        },
        "model": {
            "tower": "din",
            "zero_shot": {"pooling": "attention"},
            "mmd_over_all_ranks": False,
        },
        "train": {"batch_size": 1024, "tables": {"name": "rowwise_adagrad"}},
    }


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tables", type=click.IntRange(4), default=200, show_default=True)
@click.option("--out", type=OUTPUT_FILE, required=True, help="YAML file to write.")
def main(tables: int, out: Path) -> None:
    """Write a configuration with so many tables."""
    out.write_text(yaml.safe_dump(many_tables(tables), sort_keys=False))


if __name__ == "__main__":
    main()
