"""Settings that a continued run may change, and why it may not change the others."""

import re

from mail_torchrec.data.column_types import ColumnTypes
from mail_torchrec.data.parquet.logical_types import LogicalType
from mail_torchrec.utils.config_trees import NEUTRAL_SETTINGS

CHANGEABLE_SETTINGS = (
    *NEUTRAL_SETTINGS,
    "name",
    "checkpoint.",
    "data.day",
    "data.validation",
    "data.validation.",
    "data.test_negatives_kept",
    "data.cold_start.",
    "data.new_items",
    "data.new_items.",
    "data.shuffle_buffer_size",
    "data.group_by_user",
    "sharding.communication",
    "sharding.communication.",
    "sharding.replicas",
    "schema.tables.*.admit",
    "schema.tables.*.evict",
    "schema.tables.*.ttl_days",
    "schema.tables.*.half_life_days",
    "schema.tables.*.init_from",
    "schema.tables.*.init_from.*",
    "model.zero_shot.learning_rate_scale",
    "train.epochs",
    "train.batch_size",
    "train.precision",
    "train.seed",
    "train.freeze",
    "train.learning_rate",
    "train.schedule.",
    "train.weight_decay",
    "train.clip_norm",
    "train.tables.learning_rate",
    "train.tables.schedule.",
    "train.evaluate_every",
    "train.evaluate_rows",
    "train.early_stopping.",
    "train.progressive_rows",
)
"""Settings that a continued run may change: its data, and how it learns from them. Columns, tables
and model are the parent's. Sections end with a dot; ``*`` stands for the name of a table."""
_TABLE_ROWS = re.compile(r"schema\.tables\..+\.(rows|fallback_rows): .*")


def refusal(folder: str, differences: list[str]) -> str:
    """Words the refusal of a run whose configuration changes what it may not.

    Args:
        folder: of the parent's checkpoint.
        differences: a line for each setting, which it begins with.
    """
    rows = ""
    if any(map(_TABLE_ROWS.fullmatch, differences)):
        rows = " A table keeps its rows: weights and optimizer state are those of its rows."
    listed = "\n  ".join(differences)
    return (
        f"a run that continues '{folder}' may change its data and how it learns from them, and not "
        f"its columns, tables and model.{rows} Take these changes back, or begin a new run with "
        f"--init-from:\n  {listed}"
    )


def check_types(path: str, types: ColumnTypes, known: ColumnTypes) -> None:
    """Checks that columns have the types that they had in the parent's data.

    Args:
        path: of the new training data, for the message.
        types: of its columns.
        known: of the parent's columns.

    Raises:
        ValueError: a column has another type; all are listed.
    """
    nothing = LogicalType.NOTHING
    other = [
        f"column '{name}': {known[name].kind} in the parent's data ({known[name].file}), "
        f"{found.kind} now ({found.file})"
        for name, found in types.items()
        if name in known and nothing not in (found.kind, known[name].kind)
        if found.kind != known[name].kind
    ]
    if other:
        listed = "\n  ".join(other)
        raise ValueError(
            f"'{path}' has columns of other types than the parent's data, whose ids would all be "
            f"unknown; write them with the same types:\n  {listed}"
        )
