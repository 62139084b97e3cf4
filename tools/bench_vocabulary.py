"""Measures the fitting of a large vocabulary on one rank and on several: seconds and peak memory.

    python tools/bench_vocabulary.py --ids 50_000_000 --ranks 1 2
    python tools/bench_vocabulary.py --ids 10_000_000 --repeats 10
    python tools/bench_vocabulary.py --ids 50_000_000 --length 5 --group-rows 10_000_000

Writes rows whose histories hold so many distinct ids, lets each number of ranks fit the encoders
and save them, each rank a process with one thread, and checks that the files are equal. Seconds
begin when all ranks are there; memory is the highest of a process, that of its imports included.
"""

import argparse
import hashlib
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.utils.spans import collect_spans, span
from mail_torchrec.vocabularies.reading import read_over_ranks

_LENGTH, _GROUP_ROWS = 50, 20_000
"""Ids of each history, and rows of each row group, by default."""
_ODD = 0x9E3779B97F4A7C15
"""Multiples of it, modulo 2^63, are distinct and in no order."""
_SCHEMA = {
    "columns": {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "history": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 1000},
        "item": {"group": "item"},
        "age": {"group": "attribute"},
        "hour": {"group": "context"},
    }
}
_PHASES = {
    "reading": "read and count",
    "waiting for the other ranks": "wait for the others' reading",
    "sharing the counts": "bring counts together",
    "communication": "communication in it",
    "fitting": "order by frequency, on rank 0",
    "saving": "save, on rank 0",
}


def write_rows(
    folder: Path, num_ids: int, repeats: int, length: int, group_rows: int, text: bool
) -> None:
    """Writes histories of ids; the target items are a thousand others."""
    num_rows = -(-num_ids * repeats // length)
    writer = None
    for start in range(0, num_rows, group_rows):
        rows = min(group_rows, num_rows - start)
        numbers = np.arange(start * length, (start + rows) * length, dtype=np.uint64)
        numbers %= np.uint64(num_ids)
        ids = pa.array(((numbers * np.uint64(_ODD)) >> np.uint64(1)).astype(np.int64))
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * length)
        targets = pa.array(np.arange(rows) % 1000)
        table = pa.table(
            {
                "user": np.arange(start, start + rows),
                "clicked": np.arange(rows) % 2,
                "age": np.arange(rows) % 7,
                "hour": np.arange(rows) % 24,
                "history": pa.ListArray.from_arrays(
                    offsets, ids.cast(pa.string()) if text else ids
                ),
                "item": targets.cast(pa.string()) if text else targets,
            }
        )
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema)
        writer.write_table(table, row_group_size=group_rows)
    assert writer is not None
    writer.close()


def fit(rank: int, ranks: int, folder: str, meeting: str, results: Any) -> None:
    """Fits the encoders as one of some ranks, and tells what it took."""
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    schema = Schema.model_validate(_SCHEMA)
    source = Source(f"{folder}/rows.parquet", schema)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dist.barrier()
    start, used = time.perf_counter(), time.process_time()
    with collect_spans() as spans:
        fitter = read_over_ranks(source, schema, ColdStartSettings())
        read_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def save() -> None:
            with span("fitting"):
                encoders = fitter.encoders(None)
            with span("saving"):
                encoders.save(Path(folder, str(ranks)))

        broadcast_from_rank_0(save)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - start
    results.put((rank, seconds, time.process_time() - used, dict(spans), before, read_peak, peak))
    dist.barrier()
    dist.destroy_process_group()


def measure(ranks: int, folder: Path) -> float:
    """Fits on some ranks, prints what each took, and returns the seconds."""
    results = mp.get_context("spawn").SimpleQueue()
    meeting = folder / f"meeting{ranks}"
    mp.spawn(fit, (ranks, str(folder), str(meeting), results), nprocs=ranks)
    found = sorted((results.get() for _ in range(ranks)), key=lambda result: result[0])
    for rank, seconds, used, spans, *peaks in found:
        phases = " | ".join(f"{spans.get(name, 0.0):.1f}" for name in _PHASES)
        memory = " | ".join(f"{kib / 2**20:.2f}" for kib in peaks)
        print(
            f"| {ranks} | {rank} | {seconds:.1f} | {used:.1f} | {phases} | {memory} |", flush=True
        )
    return max(float(seconds) for _, seconds, *_ in found)


def digest(folder: Path) -> str:
    """Returns a checksum of all files of a folder."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=50_000_000, help="distinct ids")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks")
    parser.add_argument("--group-rows", type=int, default=_GROUP_ROWS, help="rows of a row group")
    parser.add_argument("--repeats", type=int, default=1, help="occurrences of each id")
    parser.add_argument("--length", type=int, default=_LENGTH, help="ids of each history")
    parser.add_argument("--text", action="store_true", help="ids are strings")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(
            folder,
            options.ids,
            options.repeats,
            options.length,
            options.group_rows,
            options.text,
        )
        heads = ["ranks", "rank", "seconds", "of a processor", *_PHASES.values()]
        heads += [f"GiB {when}" for when in ("before", "after counting", "at most")]
        print(f"| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}", flush=True)
        seconds = {ranks: measure(ranks, folder) for ranks in options.ranks}
        digests = {ranks: digest(folder / str(ranks)) for ranks in options.ranks}
    assert len(set(digests.values())) == 1, digests
    print(f"{options.ids:,} ids; equal files; seconds by ranks: {seconds}")


if __name__ == "__main__":
    main()
