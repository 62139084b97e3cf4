"""Measures the metrics of many rows on several ranks: dealt over them, or gathered on every rank.

    python tools/bench_metrics.py --rows 50000000 --ranks 4 --out tools/results/metrics.md

Every rank makes its share of random rows (a float32 logit, a label, a user, new or old), as an
evaluation leaves them. Both ways compute AUC, GAUC, log loss and calibration by cohort; printed are
seconds and the memory of a rank at its peak, above that of its rows. What each rank would compute
after gathering, all of them the same, rank 0 computes here alone, since memory is not for more.
"""

import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.tool_command`

from mail_torchrec.cli.options import OUTPUT_FILE
from mail_torchrec.distributed.collectives import gather_rows, single_rank
from mail_torchrec.metrics.cohorts import compute_metrics
from tools.tool_command import ToolCommand

WAYS = ("dealt", "gathered")


def random_rows(num_rows: int, rank: int, ranks: int) -> list[Any]:
    """Makes a rank's scores, labels, users and new-user flags, [rows / ranks] each."""
    rng = np.random.default_rng(rank)
    share = num_rows * (rank + 1) // ranks - num_rows * rank // ranks
    scores = rng.normal(-2, 1, share).astype(np.float32)
    users = rng.integers(max(num_rows // 20, 1), size=share) * 0x2545F4914F6CDD1D
    return [scores, (rng.random(share) < 1 / (1 + np.exp(-scores))), users, users % 5 == 0]


def measure(rank: int, ranks: int, port: int, num_rows: int, way: str, results: Any) -> None:
    """Computes the metrics once, and puts seconds, bytes of the rows, peak bytes and AUC."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    columns = random_rows(num_rows, rank, ranks)
    dist.barrier()
    before, start = _resident_bytes(), time.perf_counter()
    if way == "dealt":
        found = compute_metrics(*columns)
    else:
        gathered = [gather_rows(torch.from_numpy(column)).numpy() for column in columns]
        with single_rank():
            found = compute_metrics(*(column[: None if rank == 0 else 1] for column in gathered))
        del gathered
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own = sum(column.nbytes for column in columns)
    results.put((rank, seconds, own, peak - before, found["all"]))
    dist.barrier()
    dist.destroy_process_group()


def _resident_bytes() -> int:
    """Returns the memory of this process now; the peak so far may be higher by what it freed."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run_way(num_rows: int, ranks: int, way: str) -> list[Any]:
    """Measures one way on fresh processes; returns what each rank put, in rank order."""
    results = mp.get_context("spawn").SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(measure, (ranks, port, num_rows, way, results), nprocs=ranks)
    return sorted((results.get() for _ in range(ranks)), key=lambda found: found[0])


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=50_000_000, show_default=True, help="Rows of all ranks.")
@click.option("--ranks", default=4, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="[default: both]")
@click.option("--out", type=OUTPUT_FILE, help="Markdown file to write.")
def main(rows: int, ranks: int, ways: tuple[str, ...], out: Path | None) -> None:
    """Measure seconds and memory of the metrics of random rows."""
    lines = [
        f"# Metrics of {rows:,} rows on {ranks} ranks",
        "",
        f"`python tools/bench_metrics.py --rows {rows} --ranks {ranks}`, {os.cpu_count()} cores,"
        " one thread a rank. The gathered rows are worked on by rank 0 alone.",
        "",
        "| way | seconds | MB of a rank's rows | MB at the peak, above its rows | AUC | GAUC |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way in ways or WAYS:
        of_ranks = run_way(rows, ranks, way)
        seconds, own, peak = (max(found[place] for found in of_ranks) for place in (1, 2, 3))
        metrics = of_ranks[0][4]
        lines.append(
            f"| {way} | {seconds:.0f} | {own / 1e6:.0f} | {peak / 1e6:.0f} | {metrics['auc']!r} | "
            f"{metrics['gauc']!r} |"
        )
        click.echo(lines[-1])
    if out:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
