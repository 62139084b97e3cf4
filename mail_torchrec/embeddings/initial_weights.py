"""Initial table weights that depend on the seed alone, not on the plan or the number of ranks."""

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import table_settings

# Rows drawn by one generator. A shard draws the blocks that it overlaps, whole.
_BLOCK = 16_384


@torch.no_grad()
def initialise_tables(
    model: nn.Module, table_of: dict[str, str], schema: Schema, seed: int
) -> None:
    """Fills every table of a sharded or plain model.

    Args:
        model: whose ``state_dict`` holds the tables.
        table_of: state-dict key -> table name.
        schema: gives each table's initial range.
        seed: the same seed gives a table the same weights under every plan (on one kind of device).
    """
    for key, value in model.state_dict().items():
        if key not in table_of:
            continue
        table = table_of[key]
        if isinstance(value, ShardedTensor):
            dim = value.size()[1]
            for part in value.local_shards():
                _fill(part.tensor, tuple(part.metadata.shard_offsets), dim, table, schema, seed)
        else:
            _fill(value, (0, 0), value.shape[1], table, schema, seed)


def _fill(
    shard: Tensor, offsets: tuple[int, ...], dim: int, table: str, schema: Schema, seed: int
) -> None:
    """Draws the rows and columns of one shard, whose first element is at ``offsets`` of the table."""
    settings = table_settings(schema, table)
    low, high = settings.init_mean - settings.init_range, settings.init_mean + settings.init_range
    first_row, first_column = offsets
    last_row, last_column = first_row + shard.shape[0], first_column + shard.shape[1]
    for block in range(first_row // _BLOCK, -(-last_row // _BLOCK)):
        rows = torch.empty(_BLOCK, dim, device=shard.device)
        rows.uniform_(low, high, generator=_generator(table, seed, block, shard.device))
        rows[:, settings.dim :] = (
            # first-order weights start as a linear model's do; whatever lies behind them is never
            # read
            0
        )
        start, stop = max(first_row, block * _BLOCK), min(last_row, (block + 1) * _BLOCK)
        part = rows[start - block * _BLOCK : stop - block * _BLOCK, first_column:last_column]
        shard[start - first_row : stop - first_row] = part.to(shard.dtype)


def _generator(table: str, seed: int, block: int, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{table}/{block}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
