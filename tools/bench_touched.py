"""Measures what recording the touched rows costs a training step.

Blocks of steps with and without it take turns within one process; the ratio is of medians, with the
interval that resampled pairs of blocks give it. On a machine with other work that interval is wide;
the time in the hooks themselves, on a CPU, is not.
"""

import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import nn

from mail_torchrec.config import Config, load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.train.assembly import AssembledModel, assemble, config_feature_tables
from mail_torchrec.train.data_splits import load_split
from mail_torchrec.train.steps import run_steps
from tools.bench_watch import batches_without_end
from tools.benchmark.throughput import synchronise


class _Hooks:
    """Hooks that record, which can be taken off and put back; they add up their own time."""

    def __init__(self, model: nn.Module) -> None:
        lookups = [one for module in model.modules() for one in getattr(module, "_lookups", ())]
        modules = [module for lookup in lookups for module in lookup.modules()]
        modules += [module for module in model.modules() if isinstance(module, nn.Embedding)]
        modules += [module for module in model.modules() if isinstance(module, nn.EmbeddingBag)]
        hooks = [module._forward_pre_hooks for module in modules]
        self._hooks = [
            (place, {key: self._timed(hook) for key, hook in place.items()}) for place in hooks
        ]
        assert any(hooks for _, hooks in self._hooks), "nothing is recorded"
        self.seconds = 0.0

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*inputs: Any) -> None:
            start = time.perf_counter()
            hook(*inputs)
            self.seconds += time.perf_counter() - start

        return timed

    def switch(self, on: bool) -> None:
        """Puts all hooks back, or takes them off."""
        for place, hooks in self._hooks:
            place.clear()
            place.update(hooks if on else {})


@click.command()
@click.option("--config", "config_path", type=Path, required=True)
@click.option("--blocks", default=60, help="Blocks of steps of each kind.")
@click.option("--steps", default=3, help="Steps of a block.")
@click.argument("overrides", nargs=-1)
def main(config_path: Path, blocks: int, steps: int, overrides: tuple[str, ...]) -> None:
    """Print the time of a step without and with the recording, and their ratio."""
    config = load_config(config_path, list(overrides))
    source = Source(config.data.path(config.data.train), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    with process_group(config.train.device, config.train.timeout) as device:
        assembled = assemble(config, encoders, device, records_touched=True)
        hooks = _Hooks(assembled.model)
        seconds = _measure(config, encoders, source, assembled, hooks, blocks, steps)
    without, with_ = (statistics.median(seconds[kind]) for kind in (False, True))
    low, high = _interval(seconds[False], seconds[True])
    click.echo(f"a step: {without * 1e3:.3f} ms without, {with_ * 1e3:.3f} ms with the recording")
    in_hooks = hooks.seconds / (blocks + 1) / steps
    click.echo(f"in the hooks: {in_hooks * 1e3:.3f} ms, {in_hooks / without:.2%} of a step")
    click.echo(
        f"ratio {with_ / without:.4f}, 95 % interval {low:.4f} to {high:.4f} "
        f"({blocks} blocks of {steps} steps each, batches of {config.train.batch_size} rows)"
    )


def _measure(
    config: Config,
    encoders: Encoders,
    source: Source,
    assembled: AssembledModel,
    hooks: _Hooks,
    blocks: int,
    steps: int,
) -> dict[bool, list[float]]:
    """Returns the seconds of a step in each block, without and with the recording."""
    assembled.train_mode()
    tables = config_feature_tables(config)
    batches = batches_without_end(load_split(config, encoders, tables, source, training=True))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for block in range(2 * blocks + 2):
        # The order within a pair changes, so that a machine that slows down favours none.
        is_on = block % 4 in (1, 2)
        hooks.switch(is_on)
        start = time.perf_counter()
        for _ in islice(run_steps(assembled.pipeline, batches, block * steps + 1), steps):
            pass
        synchronise()
        if block > 1:
            seconds[is_on].append((time.perf_counter() - start) / steps)
    return seconds


def _interval(without: list[float], with_: list[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the ratio of medians over resampled pairs of blocks."""
    pairs = np.array([without, with_])
    drawn = np.random.default_rng(1).integers(0, len(without), (2000, len(without)))
    medians = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
