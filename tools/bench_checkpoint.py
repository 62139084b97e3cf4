"""How long training stands still for a checkpoint: asynchronous against synchronous, in one run.

    python tools/bench_checkpoint.py --gigabytes 1 --ranks 2

Trains a small model whose item table is that large together with its optimizer's state, saves it
several times in both modes, and prints the medians: seconds that a save keeps the training waiting,
and steps a second while an asynchronous one is written beside them.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.manifest import Manifest, Progressed, Rank
from mail_torchrec.checkpoint.saver import Saver
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.config import Config
from mail_torchrec.data.encoders import fit_encoders
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import Position
from mail_torchrec.data.reading.reader import Reader, Share
from mail_torchrec.train.assembly import Assembled, assemble
from mail_torchrec.train.state import state_of
from mail_torchrec.utils.logging import quiet_third_parties

DIM, NUM_ROWS, BATCH_SIZE = 64, 20_000, 256
_STEPS_BETWEEN = 5


def configuration(root: Path, table_rows: int) -> Config:
    """A base DNN over one large hashed table and two small ones."""
    columns = {
        "user": {"group": "group_key"},
        "clicked": {"group": "label"},
        "age": {"group": "attribute"},
        "history": {"group": "behaviour", "kind": "list", "table": "item", "max_length": 20},
        "hour": {"group": "context"},
        "item": {"group": "item"},
    }
    schema = {
        "dim": DIM,
        "columns": columns,
        "tables": {"item": {"ids": "hash", "rows": table_rows}},
    }
    model = {"tower": "base_dnn", "zero_shot": None}
    sharding = {"types": ["row_wise"]}
    return Config.model_validate(
        {
            "data": {"root": str(root)},
            "schema": schema,
            "model": model,
            "sharding": sharding,
            "train": {"batch_size": BATCH_SIZE},
        }
    )


def write_rows(folder: Path) -> None:
    """Random rows."""
    random = np.random.default_rng(0)
    columns = {
        name: random.integers(0, top, NUM_ROWS)
        for name, top in (("user", 9999), ("clicked", 2), ("age", 9), ("hour", 24), ("item", 10**9))
    }
    history = random.integers(0, 10**9, (NUM_ROWS, 20)).tolist()
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns | {"history": history}), folder / "rows.parquet")


def forever(reader: Reader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from reader


def measure(rank: int, ranks: int, folder: str, gigabytes: float, repeats: int) -> None:
    """One rank; rank 0 writes the result."""
    quiet_third_parties()
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(ranks)}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    config = configuration(
        Path(folder), int(gigabytes * 2**30 / DIM / 4 / 2)
    )  # half of it is Adagrad's state
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    share = Share(rank, ranks)
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        share=share,
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=1,
    )
    batches = forever(reader)
    found: dict[str, list[float]] = {}
    with saver(Path(folder), "async") as quick, saver(Path(folder), "sync") as slow:
        quick.prepare(state_of(assembled))
        for number in range(repeats + 1):  # the first round warms up
            times = one_round(assembled, batches, quick, slow, number)
            for name, value in times.items() if number else ():
                found.setdefault(name, []).append(value)
    if rank == 0:
        (Path(folder) / "result.json").write_text(
            json.dumps({name: statistics.median(values) for name, values in found.items()})
        )
    dist.destroy_process_group()


def one_round(
    assembled: Assembled, batches: Iterator[Batch], quick: Saver, slow: Saver, number: int
) -> dict[str, float]:
    """Trains and saves in both modes; seconds by name."""

    def steps(count: int = _STEPS_BETWEEN) -> None:
        for _ in range(count):
            assembled.pipeline.progress(batches)

    def save(saver: Saver, step: int) -> None:
        saver.save(step, state_of(assembled), Rank(), describe)

    alone = seconds(steps)
    dist.barrier()
    stalled = seconds(lambda: save(quick, 2 * number))
    dist.barrier()
    beside = seconds(steps)
    written = stalled + beside + seconds(quick.finish)
    steps(1)
    dist.barrier()
    waited = seconds(lambda: save(slow, 2 * number + 1))
    return {
        "step": alone / _STEPS_BETWEEN,
        "async": stalled,
        "step_beside": beside / _STEPS_BETWEEN,
        "written": written,
        "sync": waited,
    }


def seconds(action: Callable[[], None]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def saver(folder: Path, mode: Literal["async", "sync"]) -> Saver:
    """Saves one checkpoint over the other."""
    return Saver(
        Checkpoints(folder / "checkpoints"),
        CheckpointSettings(mode=mode, keep=1, on_failure="stop"),
        {},
        lambda _: None,
    )


def describe(ranks: list[Rank]) -> Manifest:
    """A manifest; nobody reads it."""
    return Manifest(
        step=0,
        position=Position(epoch=0),
        progress=Progressed(steps_since_report=0, log_bytes=0),
        ranks=ranks,
        written="",
        config_name="",
        versions={},
        num_rows=0,
        data="",
        vocabularies={},
    )


@click.command()
@click.option(
    "--gigabytes",
    default=1.0,
    show_default=True,
    help="Of the state, in GiB: a table and its optimizer's.",
)
@click.option("--ranks", default=1, show_default=True, help="Processes, over gloo.")
@click.option(
    "--repeats", default=5, show_default=True, help="Measured rounds; one before them warms up."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the checkpoints; by default a temporary one.",
)
def main(gigabytes: float, ranks: int, repeats: int, out: Path | None) -> None:
    """Measures how long training stands still for a checkpoint."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        write_rows(Path(folder) / "train")
        mp.start_processes(
            measure, (ranks, folder, gigabytes, repeats), nprocs=ranks, start_method="spawn"
        )
        found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    click.echo(f"{gigabytes:g} GiB on {ranks} ranks, medians of {repeats} rounds, in seconds")
    click.echo(f"  training stands still, synchronous    {found['sync']:.3f}")
    click.echo(
        f"  training stands still, asynchronous   {found['async']:.3f}   "
        f"{found['async'] / found['sync']:.1%} of the synchronous"
    )
    click.echo(f"  from there until it is published      {found['written']:.3f}")
    click.echo(
        f"  a step, and one beside the writing    {found['step']:.3f} {found['step_beside']:.3f}"
    )


if __name__ == "__main__":
    main()
