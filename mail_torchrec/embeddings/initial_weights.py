"""Initial table weights that depend on the seed alone, not on the plan or the number of ranks."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.data.content.table_vectors import TableVectors
from mail_torchrec.data.ids.hashing import mix64
from mail_torchrec.data.ids.policy import NewOwners
from mail_torchrec.data.parquet.arrow import Floats
from mail_torchrec.data.schema.columns import EmbeddingTableSettings
from mail_torchrec.data.schema.feature_tables import output_table
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import table_settings
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

# Rows drawn by one generator. A shard draws every block that it overlaps, whole.
_BLOCK_ROWS = 16_384


@torch.no_grad()
def initialise_tables(
    model: nn.Module, table_names: dict[str, str], schema: Schema, seed: int
) -> None:
    """Fills every table of a sharded or unsharded model.

    Args:
        model: its ``state_dict`` holds the tables.
        table_names: by state-dict key.
        schema: gives the range of each table's initial weights.
        seed: gives a table the same weights under every plan, on one kind of device.
    """
    for key, value in model.state_dict().items():
        if key in table_names:
            columns = value.size()[1]
            for shard, offsets in local_shards(value):
                _fill_shard(shard, offsets, columns, table_names[key], schema, seed)


@torch.no_grad()
def redraw_rows(
    model: nn.Module,
    table_names: dict[str, str],
    owners: Mapping[str, NewOwners],
    schema: Schema,
    seed: int,
) -> None:
    """Draws this rank's rows of new owners, and their rows of the output tables.

    A row's first owner gets the weights of :func:`initialise_tables`, each later one others that
    depend on the seed, the table, the row and the generation alone.

    Args:
        model: its ``state_dict`` holds the tables.
        table_names: by state-dict key.
        owners: by table of the schema.
        schema: gives the range of each table's initial weights.
        seed: of the run.
    """
    owners = dict(owners) | {output_table(table): found for table, found in owners.items()}
    for key, value in model.state_dict().items():
        if (table := table_names.get(key)) in owners:
            assert table is not None
            for shard, offsets in local_shards(value):
                _redraw_shard(shard, offsets, value.size()[1], table, owners[table], schema, seed)


@torch.no_grad()
def overwrite_rows(
    model: nn.Module,
    table_names: dict[str, str],
    given: Mapping[str, TableVectors],
    owners: Mapping[str, NewOwners] | None = None,
) -> None:
    """Writes vectors of a file into this rank's rows of some tables, and of their output tables.

    Args:
        model: its ``state_dict`` holds the tables.
        table_names: by state-dict key.
        given: by table, the rows and their vectors; columns behind their dimension stay as they
            are.
        owners: by table, the only rows that are written; None writes all.

    Raises:
        ValueError: vectors that do not fit, see :class:`TableVectors`.
    """
    state = model.state_dict()
    for table, vectors in given.items():
        names = table, output_table(table)
        shards = [
            shard
            for key, name in table_names.items()
            if name in names and key in state
            for shard in local_shards(state[key])
        ]
        for rows_N, weights_ND in vectors:
            if owners is not None:
                is_new_N = np.isin(rows_N, owners[table].rows_N)
                rows_N, weights_ND = rows_N[is_new_N], weights_ND[is_new_N]
            rows_tensor, weights = torch.from_numpy(rows_N), torch.from_numpy(weights_ND)
            for shard, offsets in shards:
                overwrite_shard(shard, offsets, rows_tensor, weights)
        if owners is None:
            logger.info("table '%s': %s", table, vectors.summary)


def local_shards(value: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yields this rank's shards of a table, with their first row and column; else all of it.

    Args:
        value: ``[rows, columns]``, or its optimizer state, of which a part of a row may be
            ``[rows]``.
    """
    if not isinstance(value, ShardedTensor):
        yield value, (0, 0)
        return
    for part in value.local_shards():
        yield part.tensor, tuple(part.metadata.shard_offsets)


def overwrite_shard(
    shard: Tensor, offsets: tuple[int, ...], rows_N: Tensor, weights_ND: Tensor
) -> None:
    """Writes those of the given rows and columns that a shard has.

    Args:
        shard: ``[shard rows, shard columns]``, written in place.
        offsets: first row and first column of the shard in its table.
        rows_N: numbers of rows of the table.
        weights_ND: their weights.
    """
    first_row, first_column = offsets
    inside_N = (rows_N >= first_row) & (rows_N < first_row + shard.shape[0])
    part = weights_ND[inside_N, first_column : first_column + shard.shape[1]].to(shard)
    shard[(rows_N[inside_N] - first_row).to(shard.device), : part.shape[1]] = part


def _fill_shard(
    shard: Tensor, offsets: tuple[int, ...], columns: int, table: str, schema: Schema, seed: int
) -> None:
    """Draws the weights of one shard.

    Args:
        shard: ``[shard rows, shard columns]``, written in place.
        offsets: first row and first column of the shard in its table.
        columns: of the whole table.
        table: its name.
        schema: gives the range of the weights.
        seed: of the run.
    """
    first_row, first_column = offsets
    last_row, last_column = first_row + shard.shape[0], first_column + shard.shape[1]
    for block in range(first_row // _BLOCK_ROWS, -(-last_row // _BLOCK_ROWS)):
        block_row = block * _BLOCK_ROWS
        generator = _block_generator(table, seed, block, shard.device)
        rows = _draw_rows(table_settings(schema, table), columns, generator)
        start, stop = max(first_row, block_row), min(last_row, block_row + _BLOCK_ROWS)
        part = rows[start - block_row : stop - block_row, first_column:last_column]
        shard[start - first_row : stop - first_row] = part.to(shard.dtype)


def _redraw_shard(
    shard: Tensor,
    offsets: tuple[int, ...],
    columns: int,
    table: str,
    owners: NewOwners,
    schema: Schema,
    seed: int,
) -> None:
    """Draws the weights of a shard's rows that have new owners; see :func:`_fill_shard`."""
    first_row = offsets[0]
    inside_N = (owners.rows_N >= first_row) & (owners.rows_N < first_row + shard.shape[0])
    is_first_N, settings = owners.generations_N == 0, table_settings(schema, table)
    rows_N = owners.rows_N[inside_N & is_first_N]
    for block in np.unique(rows_N // _BLOCK_ROWS).tolist():
        generator = _block_generator(table, seed, block, shard.device)
        weights = _draw_rows(settings, columns, generator)
        rows_tensor = torch.from_numpy(rows_N[rows_N // _BLOCK_ROWS == block])
        chosen = weights[(rows_tensor - block * _BLOCK_ROWS).to(weights.device)]
        overwrite_shard(shard, offsets, rows_tensor, chosen)
    places = np.flatnonzero(inside_N & ~is_first_N)
    for start in range(0, len(places), _BLOCK_ROWS):
        part = places[start : start + _BLOCK_ROWS]
        again = NewOwners(owners.rows_N[part], owners.generations_N[part])
        weights = torch.from_numpy(_later_weights(settings, columns, table, again, seed))
        overwrite_shard(shard, offsets, torch.from_numpy(again.rows_N), weights)


def _later_weights(
    settings: EmbeddingTableSettings, columns: int, table: str, owners: NewOwners, seed: int
) -> Floats:
    """Computes the initial weights of rows that had other owners before, ``[N, columns]``.

    Each is a hash of table, seed, row, generation and column, so that a few rows cost no whole
    block and are the same on every device.
    """
    words_N = mix64(owners.rows_N.view(np.uint64) ^ np.uint64(_key(f"{seed}/{table}/rows")))
    words_N = mix64(words_N ^ owners.generations_N.view(np.uint64))
    words_NC = mix64(words_N[:, None] ^ np.arange(1, columns + 1, dtype=np.uint64))
    shares_NC = (words_NC >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    low = np.float32(settings.init_mean - settings.init_range)
    weights_NC: Floats = low + shares_NC * np.float32(2 * settings.init_range)
    weights_NC[:, settings.dim :] = 0  # as in _draw_rows
    return weights_NC


def _draw_rows(
    settings: EmbeddingTableSettings, columns: int, generator: torch.Generator
) -> Tensor:
    """Draws one block of initial weights, ``[block rows, columns]``."""
    low, high = settings.init_mean - settings.init_range, settings.init_mean + settings.init_range
    rows = torch.empty(_BLOCK_ROWS, columns, device=generator.device)
    rows.uniform_(low, high, generator=generator)
    # First-order weights start at 0, as those of a linear model; padding columns behind them are
    # never read.
    rows[:, settings.dim :] = 0
    return rows


def _block_generator(table: str, seed: int, block: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(_key(f"{seed}/{table}/{block}"))


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
