"""Exchange of counts of ids: each rank merges some parts of their hash, and rank 0 gets all."""

import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import torch

from mail_torchrec.data.ids.count_runs import CountRun, part_bounds
from mail_torchrec.data.ids.counts import IdCounts, sum_counts
from mail_torchrec.distributed.collectives import exchange_rows, gather_objects, world_size

_ROUND_BYTES = 2**28
"""Bytes that all ranks together send in one round."""

_Tables = Mapping[str, pa.Table]


def gather_counts(
    counts: Mapping[str, IdCounts], keep: Callable[[str, pa.Table], pa.Table]
) -> dict[str, IdCounts]:
    """Sums the counts of all ranks; every rank calls it, with the same tables.

    Each rank merges the ids of its share of the hash parts, in rounds, so that none needs memory
    for the counts of all ranks; then rank 0 gets what the ranks keep of them.

    Args:
        counts: of this rank, by table.
        keep: leaves out what is not needed of some merged counts; called with the table's name.

    Returns:
        The sums, on rank 0; nothing on the others.
    """
    merged = _merge_shares(counts, keep)
    gathered: dict[str, list[pa.Table]] = defaultdict(list)
    number = _rounds(sum(table.nbytes for table in merged.values()))
    for i in range(number):
        sent = {name: _slice(table, i, number) for name, table in merged.items()}
        for received in exchange_tables([sent, *[{}] * (world_size() - 1)]):
            for name, table in received.items():
                gathered[name].append(table)
    return {name: IdCounts(pa.concat_tables(tables)) for name, tables in gathered.items()}


def _merge_shares(
    counts: Mapping[str, IdCounts], keep: Callable[[str, pa.Table], pa.Table]
) -> dict[str, pa.Table]:
    """Sums the counts of this rank's share of the hash parts, over all ranks."""
    number = _rounds(sum(counted.num_bytes for counted in counts.values()))
    bounds = part_bounds(world_size() * number)
    runs = {name: counted.runs() for name, counted in counts.items()}
    merged: dict[str, list[pa.Table]] = defaultdict(list)
    for i in range(number):
        sent = [
            {
                name: _part(of_table, *bounds[place * number + i])
                for name, of_table in runs.items()
                if of_table
            }
            for place in range(world_size())
        ]
        parts: dict[str, list[pa.Table]] = defaultdict(list)
        for received in exchange_tables(sent):
            for name, table in received.items():
                parts[name].append(table)
        for name, tables in parts.items():
            merged[name].append(keep(name, sum_counts(pa.concat_tables(tables))))
    return {name: pa.concat_tables(tables) for name, tables in merged.items()}


def _part(runs: Sequence[CountRun], first: int, stop: int) -> pa.Table:
    return pa.concat_tables([run.part(first, stop) for run in runs])


def _rounds(num_bytes: int) -> int:
    """Returns the number of rounds in which all ranks send so many bytes each."""
    return max(-(-sum(gather_objects(num_bytes)) // _ROUND_BYTES), 1)


def _slice(table: pa.Table, number: int, of: int) -> pa.Table:
    start, stop = (len(table) * i // of for i in (number, number + 1))
    return table.slice(start, stop - start)


def exchange_tables(sent: Sequence[_Tables]) -> list[_Tables]:
    """Sends tables to ranks, and returns those that the ranks sent here.

    Args:
        sent: for each rank, tables by name.

    Returns:
        Of each rank, in their order.
    """
    if world_size() == 1:
        return list(sent)
    packed = [_packed(tables) for tables in sent]
    sizes = torch.tensor([[len(part)] for part in packed])
    received_sizes = exchange_rows(sizes, [1] * world_size()).flatten().tolist()
    joined = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
    received = memoryview(exchange_rows(joined, sizes.flatten().tolist()).numpy())
    tables, start = [], 0
    for size in received_sizes:
        tables.append(_unpacked(received[start : start + size]))
        start += size
    return tables


def _packed(tables: _Tables) -> bytes:
    streams = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        streams[name] = sink.getvalue().to_pybytes()
    return pickle.dumps(streams)


def _unpacked(packed: memoryview) -> _Tables:
    """Reads tables that another rank of this job has packed."""
    return {
        name: pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
        for name, stream in pickle.loads(packed).items()
    }
