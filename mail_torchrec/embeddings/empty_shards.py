"""Tables with too few rows to be cut by rows.

TorchRec cuts a table into blocks of ``ceil(rows / ranks)`` rows, so that the last ranks may get
none: 4 rows on 3 ranks lie as 2, 2, 0. FBGEMM's CPU kernels take such a shard for its neighbour's
and read past the end of the last one; on CUDA a rank fails whose every table is empty. A table so
small gains nothing by being cut: it lies whole on one rank.
"""

from collections.abc import Iterable

_CUT_BY_RANKS = ("row_wise",)
_CUT_BY_RANKS_OF_A_HOST = ("table_row_wise", "grid_shard")


def has_empty_shard(rows: int, ranks: int) -> bool:
    """Whether the last of so many ranks gets no row."""
    return -(-rows // ranks) * (ranks - 1) >= rows


def without_empty_shards(
    types: Iterable[str], rows: int, ranks: int, ranks_a_host: int
) -> list[str]:
    """The sharding types that give each rank a row; table-wise where none of the wanted ones does."""
    ranks_of = dict.fromkeys(_CUT_BY_RANKS, ranks) | dict.fromkeys(
        _CUT_BY_RANKS_OF_A_HOST, ranks_a_host
    )
    return [kind for kind in types if not has_empty_shard(rows, ranks_of.get(kind, 1))] or [
        "table_wise"
    ]
