"""Row-wise shards without rows, which tables with few rows would have.

TorchRec cuts a table into blocks of ``ceil(rows / ranks)`` rows, so that the last ranks may get
none: 4 rows on 3 ranks are cut into 2, 2 and 0. FBGEMM's CPU kernels mistake such a shard for its
neighbour and read past the end of the last one; on CUDA a rank fails if all of its shards are
empty. Sharding gains nothing for a table so small, so that it is placed whole on one rank.
"""

from collections.abc import Iterable

from torchrec.distributed.types import ShardingPlan

_ROWS_OVER_ALL_RANKS = ("row_wise",)
_ROWS_OVER_ONE_HOST = ("table_row_wise", "grid_shard")


def has_empty_shard(rows: int, num_shards: int) -> bool:
    """Returns whether the last row-wise shard of a table has no rows."""
    return -(-rows // num_shards) * (num_shards - 1) >= rows


def exclude_empty_shards(
    sharding_types: Iterable[str], rows: int, world_size: int, local_world_size: int
) -> list[str]:
    """Selects the sharding types under which every shard of a table has rows.

    Args:
        sharding_types: the types that the constraints allow.
        rows: of the table.
        world_size: ranks.
        local_world_size: ranks of one host.

    Returns:
        The remaining types in the same order; ``["table_wise"]`` if none remains.
    """
    num_row_shards = dict.fromkeys(_ROWS_OVER_ALL_RANKS, world_size)
    num_row_shards |= dict.fromkeys(_ROWS_OVER_ONE_HOST, local_world_size)
    remaining = [
        sharding_type
        for sharding_type in sharding_types
        if not has_empty_shard(rows, num_row_shards.get(sharding_type, 1))
    ]
    return remaining or ["table_wise"]


def check_no_empty_shard(plan: ShardingPlan) -> None:
    """Refuses a plan that FBGEMM's CPU kernels cannot execute.

    Raises:
        ValueError: a shard has no rows.
    """
    for module_plan in plan.plan.values():
        for table, sharding in module_plan.items():
            shards = getattr(sharding.sharding_spec, "shards", [])
            if any(0 in shard.shard_sizes for shard in shards):
                raise ValueError(
                    f"sharding: on CPU every rank needs a row of a {sharding.sharding_type} "
                    f"table, and '{table}' has too few for {len(shards)} ranks; use fewer ranks, "
                    f"or sharding.constraints.{table}.sharding_types=[table_wise]"
                )
