"""Measures how long training waits for a checkpoint, asynchronous and synchronous.

    python tools/bench_checkpoint.py --gigabytes 1 --ranks 2

It trains a small model whose item table and optimizer state have the given size, saves it several
times in both modes in one run, and prints medians: seconds that a save keeps the training waiting,
and seconds a step while an asynchronous one is written.
"""

import gc
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
from mail_torchrec.checkpoint.manifest import CheckpointManifest, LogPosition, RankProgress
from mail_torchrec.checkpoint.saver import CheckpointSaver
from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.checkpoint.writer import Snapshot
from mail_torchrec.cli.options import OUTPUT_DIR
from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import DataPosition, RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import AssembledModel, assemble
from mail_torchrec.train.state import run_state
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.throughput import synchronise
from tools.tool_command import ToolCommand

DIM, NUM_ROWS, BATCH_SIZE = 64, 20_000, 256
_STEPS_BETWEEN = 5


def configuration(root: Path, table_rows: int) -> Config:
    """Makes the configuration of a base DNN over one large hashed table and small ones."""
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
    sharding = {"sharding_types": ["row_wise"]}
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
    """Writes random rows."""
    random = np.random.default_rng(0)
    columns = {
        name: random.integers(0, top, NUM_ROWS)
        for name, top in (("user", 9999), ("clicked", 2), ("age", 9), ("hour", 24), ("item", 10**9))
    }
    history = random.integers(0, 10**9, (NUM_ROWS, 20)).tolist()
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns | {"history": history}), folder / "rows.parquet")


def endless_batches(reader: Reader) -> Iterator[Batch]:
    """Yields batches epoch after epoch."""
    while True:
        yield from reader


def measure(
    rank: int, ranks: int, folder: str, gigabytes: float, repeats: int, device_name: str
) -> None:
    """Measures on one rank; rank 0 writes the result."""
    silence_third_parties()
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(ranks)}
    rendezvous = f"file://{folder}/rendezvous"
    device = torch.device(device_name, *([rank] if device_name == "cuda" else []))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=ranks)
    # Half of the state is Adagrad's.
    config = configuration(Path(folder), int(gigabytes * 2**30 / DIM / 4 / 2))
    assembled, batches = _assemble(config, RankInfo(rank, ranks), device)
    found: dict[str, list[float]] = {}
    with _saver(Path(folder), "async") as concurrent, _saver(Path(folder), "sync") as blocking:
        before = _resident_bytes()
        concurrent.prepare(run_state(assembled))
        buffers = _resident_bytes() - before
        for number in range(repeats + 1):
            times = _measure_round(assembled, batches, concurrent, blocking, number)
            # The first round warms up.
            for name, value in times.items() if number else ():
                found.setdefault(name, []).append(value)
    if rank == 0:
        medians = {name: statistics.median(values) for name, values in found.items()}
        del concurrent, blocking
        gc.collect()
        medians |= {"buffer_bytes": buffers, "kept_bytes": _resident_bytes() - before}
        (Path(folder) / "result.json").write_text(json.dumps(medians))
    dist.destroy_process_group()


def _resident_bytes() -> int:
    """Returns this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _assemble(
    config: Config, rank_info: RankInfo, device: torch.device
) -> tuple[AssembledModel, Iterator[Batch]]:
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, device)
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        rank_info=rank_info,
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=1,
    )
    return assembled, endless_batches(reader)


def _measure_round(
    assembled: AssembledModel,
    batches: Iterator[Batch],
    concurrent: CheckpointSaver,
    blocking: CheckpointSaver,
    number: int,
) -> dict[str, float]:
    """Trains and saves in both modes; returns seconds by name."""

    def train(count: int = _STEPS_BETWEEN) -> None:
        for _ in range(count):
            assembled.pipeline.progress(batches)

    def save(saver: CheckpointSaver, step: int) -> None:
        state = run_state(assembled)
        saver.save(Snapshot(step, state, RankProgress(), _make_manifest, {}))

    alone = measure_seconds(train)
    dist.barrier()
    stalled = measure_seconds(lambda: save(concurrent, 2 * number))
    dist.barrier()
    during_write = measure_seconds(train)
    written = stalled + during_write + measure_seconds(concurrent.finish)
    train(1)
    dist.barrier()
    waited = measure_seconds(lambda: save(blocking, 2 * number + 1))
    return {
        "step": alone / _STEPS_BETWEEN,
        "async": stalled,
        "step_during_write": during_write / _STEPS_BETWEEN,
        "written": written,
        "sync": waited,
    }


def measure_seconds(action: Callable[[], None]) -> float:
    """Measures the seconds that an action takes."""
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def _saver(folder: Path, mode: Literal["async", "sync"]) -> CheckpointSaver:
    """Makes a saver that keeps one checkpoint."""
    settings = CheckpointSettings(mode=mode, keep=1, on_failure="stop")
    return CheckpointSaver(
        Checkpoints(folder / "checkpoints"), settings, lambda _: None, lambda _: None
    )


def _make_manifest(ranks: list[RankProgress]) -> CheckpointManifest:
    """Makes a manifest that nothing reads."""
    return CheckpointManifest(
        step=0,
        position=DataPosition(epoch=0),
        progress=LogPosition(steps_since_report=0, log_bytes=0),
        ranks=ranks,
        written="",
        config_name="",
        versions={},
        num_rows=0,
        data=(),
        vocabularies={},
    )


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--gigabytes",
    default=1.0,
    show_default=True,
    help="Size of the state in GiB: a table and its optimizer's.",
)
@click.option("--ranks", default=1, show_default=True, help="Processes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--repeats", default=5, show_default=True, help="Measured rounds; one before them warms up."
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    help="Folder for the checkpoints; by default a temporary one.",
)
def main(gigabytes: float, ranks: int, device: str, repeats: int, out: Path | None) -> None:
    """Measure how long training waits for a checkpoint.

    \b
    python tools/bench_checkpoint.py --gigabytes 1 --ranks 1 --repeats 3
    """  # noqa: D301
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        write_rows(Path(folder) / "train")
        arguments = (ranks, folder, gigabytes, repeats, device)
        mp.start_processes(measure, arguments, nprocs=ranks, start_method="spawn")
        found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    share = found["async"] / found["sync"]
    click.echo(f"{gigabytes:g} GiB on {ranks} ranks, medians of {repeats} rounds, in seconds")
    click.echo(f"  training waits, synchronous           {found['sync']:.3f}")
    click.echo(f"  training waits, asynchronous          {found['async']:.3f}   "
               f"{share:.1%} of the synchronous")  # fmt: skip
    click.echo(f"  until an asynchronous one is published {found['written']:.3f}")
    steps = f"{found['step']:.3f} {found['step_during_write']:.3f}"
    click.echo(f"  a step alone, and during the writing  {steps}")


if __name__ == "__main__":
    main()
