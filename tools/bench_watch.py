"""Measures what the watch over a training's steps costs while nothing is profiled.

Blocks of steps with and without it take turns within one process; the ratio is of medians.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import torch

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.profiling.bottleneck import RunFacts
from mail_torchrec.profiling.step_watch import StepWatch
from mail_torchrec.train.assembly import assemble, config_feature_tables
from mail_torchrec.train.data_splits import DataSplit, load_split
from mail_torchrec.train.steps import TimedBatches, run_steps
from tools.benchmark.throughput import synchronise


def batches_without_end(split: DataSplit) -> Iterator[Batch]:
    """Yields the batches of epoch after epoch."""
    epoch = 0
    while True:
        split.reader.set_epoch(epoch, followed=True)
        yield from TimedBatches(split.loader)
        epoch += 1


@click.command()
@click.option("--config", "config_path", type=Path, required=True)
@click.option("--blocks", default=100, help="Blocks of steps of each kind.")
@click.option("--steps", default=5, help="Steps of a block.")
@click.argument("overrides", nargs=-1)
def main(config_path: Path, blocks: int, steps: int, overrides: tuple[str, ...]) -> None:
    """Print the time of a step without and with the watch, and their ratio."""
    config = load_config(config_path, list(overrides))
    source = Source(config.data.path(config.data.train), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    with process_group(config.train.device, config.train.timeout) as device:
        _measure(config, encoders, source, device, blocks, steps)


def _measure(
    config: Config,
    encoders: Encoders,
    source: Source,
    device: torch.device,
    blocks: int,
    steps: int,
) -> None:
    """Prints the times of steps."""
    assembled = assemble(config, encoders, device)
    assembled.train_mode()
    tables = config_feature_tables(config)
    batches = batches_without_end(load_split(config, encoders, tables, source, training=True))
    facts = RunFacts(1, 0, False, True, False, "float32", device.type, 1, 1)
    watch = StepWatch(None, Path(), 0, 10**9, device, facts)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for block in range(2 * blocks + 2):
        watched = block % 2 == 1
        several = run_steps(assembled.pipeline, batches, block * steps + 1)
        start = time.perf_counter()
        for _ in islice(watch.steps(several) if watched else several, steps):
            pass
        synchronise()
        if block > 1:
            seconds[watched].append((time.perf_counter() - start) / steps)
    without, with_ = (statistics.median(seconds[kind]) for kind in (False, True))
    click.echo(f"a step: {without * 1e3:.3f} ms without, {with_ * 1e3:.3f} ms with the watch")
    click.echo(f"ratio {with_ / without:.4f} ({blocks} blocks of {steps} steps each)")


if __name__ == "__main__":
    main()
