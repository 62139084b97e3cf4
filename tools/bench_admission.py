"""Measures the admission of the ids of a managed table: rows per second and peak memory.

    python tools/bench_admission.py --ids 50_000_000

A first day counts and admits so many distinct ids; a second day has a tenth as many old ones and a
tenth as many new ones, of a table that is full. Times are of one process and one thread; memory is
the highest of the process.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.managed import ManagedPolicy
from mail_torchrec.data.ids.settings import IdSettings

_CHUNK = 1_000_000
_ODD = 0x9E3779B97F4A7C15
"""Multiples of it, modulo 2^63, are distinct and in no order."""


def chunks(first: int, number: int) -> Iterator[pa.Array]:
    """Yields distinct ids in no order, a chunk at a time."""
    for start in range(first, first + number, _CHUNK):
        stop = min(start + _CHUNK, first + number)
        numbers = np.arange(start, stop, dtype=np.uint64) * np.uint64(_ODD)
        yield pa.array((numbers >> np.uint64(1)).astype(np.int64))


def counted(first: int, number: int) -> IdCounts:
    """Counts distinct ids."""
    counts = IdCounts()
    for ids in chunks(first, number):
        counts.add(ids)
    return counts


def report(name: str, number: int, start: float) -> None:
    """Prints seconds, ids per second and the peak of memory so far."""
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {name} | {number:,} | {seconds:.1f} | {number / seconds:,.0f} | {peak:.1f} |",
        flush=True,
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=50_000_000, help="distinct ids of the first day")
    parser.add_argument("--rows", type=int, help="of the table; by default as many as ids")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    number, rows = options.ids, (options.rows or options.ids) + 66
    policy = ManagedPolicy("item", IdSettings(ids="managed", rows=rows))
    print("| step | ids | seconds | ids/s | peak GiB |\n| --- | ---: | ---: | ---: | ---: |")
    start = time.perf_counter()
    counts = counted(0, number)
    assert len(counts.table) == number
    report("count a first day", number, start)
    start = time.perf_counter()
    encoder = policy.fit(counts, date(2024, 5, 1))
    report("admit it", number, start)
    del counts
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        encoder.save(Path(folder), "item")
        report("save", number, start)
        del encoder
        start = time.perf_counter()
        encoder = policy.load(Path(folder))
        report("load", number, start)
    second = number // 10
    start = time.perf_counter()
    counts = counted(number - second, 2 * second)
    report("count a second day, half of it new", 2 * second, start)
    start = time.perf_counter()
    updated = policy.update(encoder, counts, date(2024, 5, 2))
    report("admit it, evict as many", 2 * second, start)
    found = updated.last_update
    print(f"{found.admitted:,} admitted, {found.evicted:,} evicted, {found.refused:,} refused")


if __name__ == "__main__":
    main()
