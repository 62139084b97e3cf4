"""Workload of the tables: their sizes and the ids that a training step looks up."""

from dataclasses import dataclass

from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.settings import OptimizerName


@dataclass(frozen=True)
class Workload:
    """Tables and batches that the planner estimates memory and time for."""

    sizes: dict[str, tuple[int, int]]
    """Stored rows and columns by table name."""
    pooling_factors: dict[str, list[float]]
    """Mean number of ids a row of the batch, for each feature key of each table."""
    batch_size: int
    """Rows a rank."""
    optimizer: OptimizerName
    """Fused optimizer of the tables."""
    stages_checkpoints: bool = False
    """Checkpoints are copied to buffers in the host's memory before they are written."""


def pooling_factors(
    schema: Schema,
    feature_tables: FeatureTables,
    mean_lengths: dict[str, float],
    *,
    batch_size: int,
    num_negatives: int,
) -> dict[str, list[float]]:
    """Computes the mean number of ids that each feature key has in a row of the batch.

    Args:
        schema: columns.
        feature_tables: tables by feature key.
        mean_lengths: by list column; a list that is not named counts with its ``max_length``.
        batch_size: rows a rank.
        num_negatives: of the match loss, drawn once a batch.

    Returns:
        A number for each key of each table, in the order of the table's keys.

    Raises:
        ValueError: a mean length is of no list column, or not between 0 and its ``max_length``.
    """
    _check_mean_lengths(schema, mean_lengths)
    of_key = {
        name: float(mean_lengths.get(name, schema.columns[name].max_length))
        for name in schema.lists
    }
    of_key |= {keys.negatives: num_negatives / batch_size for keys in feature_tables.match.values()}
    factors: dict[str, list[float]] = {}
    for key, table in (feature_tables.pooled | feature_tables.unpooled).items():
        factors.setdefault(table, []).append(of_key.get(key, 1.0))
    return factors


def _check_mean_lengths(schema: Schema, mean_lengths: dict[str, float]) -> None:
    for name, length in mean_lengths.items():
        if name not in schema.lists:
            raise ValueError(
                f"sharding.pooling_factors: no list column is called '{name}'; the lists are "
                f"{', '.join(schema.lists) or 'none'}"
            )
        if not 0 <= length <= schema.columns[name].max_length:
            raise ValueError(
                f"sharding.pooling_factors.{name} should lie between 0 and its max_length, "
                f"{schema.columns[name].max_length}, received {length}"
            )
