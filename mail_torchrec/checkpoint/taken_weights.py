"""Weights of another run's checkpoint for a model that begins: whole towers, and rows by their ids.

Shape: ``N`` rows of a table.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mail_torchrec.checkpoint.staging import global_size
from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.checkpoint.tensor_index import StoredChunk, read_index
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.policy import FIRST_ROW, MISSING_ROW, IdEncoder
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.schema.feature_tables import output_table
from mail_torchrec.embeddings.initial_weights import local_shards, overwrite_shard
from mail_torchrec.optim.ema import EMA_PREFIX
from mail_torchrec.utils.safe_paths import open_regular

_MODEL = "model."
_BLOCK_ROWS = 65_536


class TakenWeights(NamedTuple):
    """Parts of a model that have another run's weights now, and those that do not."""

    taken: list[str]
    """A line for each part."""
    left: list[str]
    """A line for each part that begins at random, with the reason."""


@torch.no_grad()
def take_weights(
    model: nn.Module,
    table_names: Mapping[str, str],
    encoders: Encoders,
    folder: Path,
    parent: Encoders,
) -> TakenWeights:
    """Reads the weights of a checkpoint as far as they fit; every rank calls it.

    A tower is taken whole, with its averages where there are any, or not at all. Of a table the
    rows of the ids that both runs know are taken, or all rows where ids need no vocabulary.

    Args:
        model: with its initial weights.
        table_names: by state-dict key of the model.
        encoders: of the model.
        folder: the checkpoint.
        parent: encoders of its run.

    Raises:
        ValueError: on every rank; the checkpoint cannot be read, or nothing fits.
    """
    state, saved = model.state_dict(), read_tensor_metadata(folder)
    found = TakenWeights([], [])
    for key, name in table_names.items():
        there = saved.get(_MODEL + key)
        fault, rows = _matching_rows(name, encoders, parent)
        if there is None:
            fault = "is no table there"
        elif tuple(there.size)[1] != tuple(global_size(state[key]))[1]:
            fault = f"has {there.size[1]} columns there, {global_size(state[key])[1]} here"
        if fault is not None:
            found.left.append(f"table '{name}' {fault}")
            continue
        _take_rows(state[key], folder, _MODEL + key, *rows)
        found.taken.append(
            f"table '{name}' ({len(rows[0]):,} of {global_size(state[key])[0]:,} rows)"
        )
    for tower, keys in _towers(state, table_names).items():
        names = {key: _saved_name(key, saved) for key in keys}
        other = [
            f"{key} has the size {size_there} there, {tuple(state[key].size())} here"
            for key, name in names.items()
            if (size_there := tuple(saved[name].size) if name in saved else None)
            != tuple(state[key].size())
        ]
        if other:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            found.left.append(f"tower '{tower}': {other[0]}{more}")
            continue
        read_tensors({names[key]: state[key] for key in keys}, folder, dist.group.WORLD)
        found.taken.append(f"tower '{tower}' ({len(keys)} tensors)")
    if not found.taken:
        listed = "\n  ".join(found.left)
        raise ValueError(
            f"no weights of '{folder}' fit this model; correct --init-from, or leave it out:\n"
            f"  {listed}"
        )
    return found


def _saved_name(key: str, saved: Mapping[str, Any]) -> str:
    """Returns the name of a weight in a checkpoint, of its average where there is one."""
    return EMA_PREFIX + key if EMA_PREFIX + key in saved else _MODEL + key


def _towers(state: Mapping[str, Any], tables: Mapping[str, str]) -> dict[str, list[str]]:
    """Groups the keys of the dense weights by tower."""
    towers: dict[str, list[str]] = {}
    for key in state:
        if key not in tables:
            parts = key.split(".")
            towers.setdefault(parts[1] if parts[0] == "towers" else parts[0], []).append(key)
    return towers


def _matching_rows(
    name: str, encoders: Encoders, parent: Encoders
) -> tuple[str | None, tuple[Ints, Ints]]:
    """Finds the rows of the ids that both runs know: a fault, or rows here and there."""
    tables = encoders.tables
    [table] = [one for one in tables if name in (one, output_table(one))]
    nothing = np.zeros(0, np.int64)
    if table not in parent.tables:
        return "is no table there", (nothing, nothing)
    here, there = tables[table], parent.tables[table]
    if here.values is None or there.values is None:
        if here.num_rows != there.num_rows or _kind(here, table) != _kind(there, table):
            return "encodes its ids in another way there", (nothing, nothing)
        every = np.arange(here.num_rows)
        return None, (every, every)
    try:
        rows_there_N = there.encode(here.values)
    except ValueError as error:
        return f"has other ids there: {error}", (nothing, nothing)
    is_known_N = ~there.is_unknown(rows_there_N) & (rows_there_N != MISSING_ROW)
    shared = np.arange(FIRST_ROW)  # of unknown and null ids
    rows_N = np.concatenate([shared, here.rows_V[is_known_N]])
    return None, (rows_N, np.concatenate([shared, rows_there_N[is_known_N]]))


def _kind(encoder: IdEncoder, table: str) -> Any:
    return encoder.manifest_entry("", table)


def _take_rows(table: Tensor, folder: Path, key: str, rows_N: Ints, rows_there_N: Ints) -> None:
    """Reads rows of a saved table into this rank's shards of a table.

    Args:
        table: ``[rows, columns]``, sharded or not.
        folder: the checkpoint.
        key: of the saved table.
        rows_N: rows to write.
        rows_there_N: rows to read, one for each.
    """
    rows, there = torch.from_numpy(rows_N), torch.from_numpy(rows_there_N)
    for first, block in _blocks(folder, key):
        inside_N = (there >= first) & (there < first + len(block))
        weights_ND = block[there[inside_N] - first]
        for shard, offsets in local_shards(table):
            overwrite_shard(shard, offsets, rows[inside_N], weights_ND)


def _blocks(folder: Path, key: str) -> Iterator[tuple[int, Tensor]]:
    """Yields a saved table in blocks of rows, each with the number of its first row."""
    stored = read_index(folder).tensors[key]
    dtype = getattr(torch, stored.dtype)
    for first in range(0, stored.size[0], _BLOCK_ROWS):
        stop = min(first + _BLOCK_ROWS, stored.size[0])
        block = torch.empty(stop - first, stored.size[1], dtype=dtype)
        for chunk in stored.chunks:
            _fill_block(block, first, folder, chunk)
        yield first, block


def _fill_block(block: Tensor, first: int, folder: Path, chunk: StoredChunk) -> None:
    """Reads the part of a chunk that lies in a block of rows."""
    (row, column), (num_rows, columns) = chunk.offsets, chunk.sizes
    start, stop = max(first, row), min(first + len(block), row + num_rows)
    if start >= stop:
        return
    numbers = torch.empty(stop - start, columns, dtype=block.dtype)
    row_bytes = columns * numbers.element_size()
    with open_regular(folder / chunk.file) as file:
        file.seek(chunk.position + (start - row) * row_bytes)
        if file.readinto(numbers.view(torch.uint8).numpy()) != numbers.nbytes:
            raise ValueError(f"'{file.name}' ends within a tensor")
    block[start - first : stop - first, column : column + columns] = numbers
