"""Measures what each kind of column, table and task costs beside ids and one behaviour sequence.

    python tools/bench_columns.py --out tools/results/columns.md

Rows are those of the shop's log (``shop_log.py``) with full histories, since the planner counts
full lists. A kind and a base of its own, equally old, train in turns within one process, the first
of a pair by turns too, and read in turns; a ratio is the median over pairs of turns. Beside them
stand the planner's bytes and those that were measured.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.embeddings.hardware import hardware_preset
from mail_torchrec.embeddings.storage import format_bytes
from mail_torchrec.optim.groups import OptimizerGroup
from mail_torchrec.planning.estimate import TABLE_PARTS
from mail_torchrec.planning.estimator import estimate_scenario
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.cost.dense_cost import batch_bytes
from mail_torchrec.train.cost.memory_usage import memory_usage
from mail_torchrec.train.cost.step_cost import bytes_kept
from tools.benchmark.throughput import timed_turn
from tools.benchmark.trainers import ProjectTrainer, fit_training_encoders
from tools.benchmark.workload import Variant, Workload
from tools.column_kinds import BASE, KINDS, LENGTH, ROWS, TOWERS, configuration
from tools.content_gain import write_item_vectors
from tools.shop import VECTOR_DIM, Shop
from tools.shop_log import write_shop
from tools.tool_command import ToolCommand

Item = TypeVar("Item")

_HEAD = """# Cost of each kind of column, table and task

`python tools/bench_columns.py` on {rows:,} rows of the shop's log with full histories ({length}):
dimension {dim}, batches of {batch_size}, one rank on CPU. The base has columns of ids, a number and
one sequence of behaviours. Times are ratios to those of a base as new as the kind's model: medians
over {repeats} pairs of turns of {steps} steps (reading: of {epochs} epochs), the first of a pair by
turns, 95 % intervals; `base` beside itself tells how far they stray. Memory is
`planner / measured = ratio`: towers with gradients and moments of Adam, the activations of a step
with the ids that the kernels keep, and two batches.
"""


def write_rows(folder: Path, rows: int, batch_size: int) -> int:
    """Writes the shop's rows whose histories are full, and returns their number.

    Entries of the histories get weights, newer ones higher ones.

    Args:
        folder: empty folder.
        rows: impressions of the log, of which about a third is kept.
        batch_size: divides the number of rows that are kept, so that every batch is full.

    Raises:
        ValueError: too few for a batch.
    """
    write_shop(Shop(rows, days=7, users=max(10, rows // 30), items=600, seed=1), folder)
    write_item_vectors(folder)
    table = pads.dataset(folder / "rows").to_table()
    table = table.filter(pc.greater_equal(pc.list_value_length(table["seen_item"]), LENGTH))
    table = table.slice(0, len(table) // batch_size * batch_size)
    if not len(table):
        raise ValueError(f"--rows {rows} should leave {batch_size} rows with {LENGTH} behaviours")
    lengths = pc.list_value_length(table["seen_item"]).to_pylist()
    weights = [[float(entry + 1) for entry in range(length)] for length in lengths]
    pq.write_table(table.append_column("seen_weight", pa.array(weights)), folder / ROWS)
    return len(table)


def make_trainer(folder: Path, tower: str, name: str, batch_size: int) -> ProjectTrainer:
    """Makes the trainer of a kind."""
    workload = Workload.write(folder, configuration(tower, KINDS[name], batch_size))
    encoders = fit_training_encoders(workload.config())
    return ProjectTrainer(workload, Variant(name), torch.device("cpu"), encoders)


@dataclass(frozen=True)
class Ratio:
    """Median of ratios, and an interval of at least 95 % by their order."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Ratio":
        """Summarises one ratio a pair of turns; of fewer than 6 the interval is their range."""
        ordered, count = sorted(values), len(values)
        below, left_out = 2 / 2**count, 0
        while below <= 0.05 and left_out < (count - 1) // 2:
            left_out += 1
            below += 2 * math.comb(count, left_out) / 2**count
        cut = max(0, left_out - 1)
        return Ratio(statistics.median(ordered), ordered[cut], ordered[-1 - cut])

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def step_ratios(
    base: ProjectTrainer, other: ProjectTrainer, repeats: int, steps: int
) -> tuple[Ratio, Ratio, float]:
    """Trains in turns: ratios of a step's time with and without reading, and its milliseconds.

    Args:
        base: trained as many steps as the other: a model that has learnt its rows by heart has
            gradients in the range of denormal numbers, which CPUs multiply slowly.
        other: compared with it.
        repeats: pairs of turns.
        steps: of a turn.
    """
    whole, without, milliseconds = [], [], []
    pair = (base, other)
    for trainer in pair:
        timed_turn(trainer, 3)
    for repeat in range(repeats):
        turns = {}
        for trainer in swapped(pair, repeat):
            trainer.step()
            turns[trainer] = timed_turn(trainer, steps)
        first, second = (turns[trainer] for trainer in pair)
        whole.append(second.seconds / first.seconds)
        rests = [turn.seconds - turn.input_seconds for turn in (first, second)]
        without.append(rests[1] / rests[0])
        milliseconds.append(1e3 * second.seconds / steps)
    return Ratio.of(whole), Ratio.of(without), statistics.median(milliseconds)


def swapped(pair: tuple[Item, Item], repeat: int) -> tuple[Item, Item]:
    """Returns a pair in the order of a repeat: every other one has the second first."""
    return (pair[1], pair[0]) if repeat % 2 else pair


def reading_ratio(base: ProjectTrainer, other: ProjectTrainer, epochs: int) -> tuple[Ratio, float]:
    """Reads epochs in turns: ratio of the time, and rows a second of the second one."""
    pair = (base, other)
    ratios, speeds = [], []
    for epoch in range(epochs + 1):
        rows, seconds = 0, {}
        for trainer in swapped(pair, epoch):
            split = trainer.input.split
            split.reader.set_epoch(epoch)
            start = time.perf_counter()
            rows = sum(len(batch) for batch in split.loader)
            seconds[trainer] = time.perf_counter() - start
        ratios.append(seconds[other] / seconds[base])
        speeds.append(rows / seconds[other])
    return Ratio.of(ratios[1:]), statistics.median(speeds[1:])


def _storage_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Sums the bytes of storages, each once."""
    storages = [value.untyped_storage() for value in tensors if value is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _local(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yields tensors, and the shards of sharded ones."""
    for value in values:
        sharded = isinstance(value, ShardedTensor)
        yield from (shard.tensor for shard in value.local_shards()) if sharded else (value,)


def _states(groups: Iterable[OptimizerGroup]) -> Iterator[Any]:
    return (value for group in groups for state in group.state.values() for value in state.values())


def measured_memory(trainer: ProjectTrainer) -> dict[str, float]:
    """Measures bytes by purpose; the trainer should have trained a step before."""
    model, groups = trainer.assembled.model, [*trainer.assembled.optimizer]
    of_run = trainer.assembled
    usage = memory_usage(of_run.model, of_run.optimizer, of_run.device)
    # The kernels of the tables keep weights and optimizer state for the backward pass.
    with bytes_kept(_local([*model.state_dict().values(), *_states(groups)])) as kept:
        trainer.step()
    dense = [group for group in groups if not group.is_fused]
    trained = [value for group in dense for value in group.trained.values()]
    towers = (trained, (value.grad for value in trained), _states(dense))
    return {
        "tables": usage["table_weights"][0] + usage["optimizer_state"][0],
        "towers": sum(map(_storage_bytes, towers)),
        "activations": sum(kept.values()),
        "batches": 2 * batch_bytes(next(trainer.input)),
    }


def planned_memory(trainer: ProjectTrainer) -> dict[str, float]:
    """Returns the planner's bytes of the same purposes."""
    num_rows, dims = trainer.encoders.num_rows, trainer.encoders.vector_dims
    hardware = hardware_preset("cpu", ("local_world_size=1",))
    config = trainer.config.with_dims(num_rows)
    estimate = estimate_scenario(Scenario(config, num_rows, hardware, 1, (), dims))
    dense, tables = estimate.dense_memory, estimate.table_memory_R
    # Kernels of behaviours and target items keep a copy of their ids, a part of the tables' inputs.
    factors = estimate.workload.pooling_factors
    unpooled = set(config_feature_tables(config).unpooled.values())
    ids_per_row = sum(sum(factors[table]) for table in unpooled)
    return {
        "tables": sum(float(tables[part][0]) for part in TABLE_PARTS[:2]),
        "towers": sum(dense[part] for part in ("weights", "gradients", "adam")),
        "activations": dense["activations"] + 8 * ids_per_row * config.train.batch_size,
        "batches": dense["batches"],
    }


@dataclass(frozen=True)
class Turns:
    """Sizes of the measurement."""

    batch_size: int
    repeats: int
    steps: int
    epochs: int


def _measure_tower(folder: Path, tower: str, kinds: Sequence[str], turns: Turns) -> str:
    """Returns the tables of one tower, in Markdown."""
    steps, memory = [], []
    for name in (BASE, *kinds):
        base = make_trainer(folder, tower, BASE, turns.batch_size)
        other = make_trainer(folder, tower, name, turns.batch_size)
        whole, without, milliseconds = step_ratios(base, other, turns.repeats, turns.steps)
        reading, speed = reading_ratio(base, other, turns.epochs)
        figures = (f"{milliseconds:.1f}", str(whole), str(without), f"{speed:,.0f}", str(reading))
        steps.append((name, *figures))
        found, planned = measured_memory(other), planned_memory(other)
        cells = [
            f"{format_bytes(planned[part])} / {format_bytes(found[part])} = "
            f"{planned[part] / found[part]:.2f}"
            for part in found
        ]
        memory.append((name, *cells))
        click.echo(f"{tower}: {', '.join(steps[-1])}; {', '.join(memory[-1])}")
    step_header = ("kind", "ms a step", "step", "step without reading", "rows/s read", "reading")
    tables = markdown_table(step_header, steps), markdown_table(("memory", *found), memory)
    return f"## {tower}\n\n" + "\n".join(tables)


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(100), default=40_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=256, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=31, show_default=True, help="Turns.")
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="Of a turn.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Of reading.")
@click.option("--tower", "towers", type=click.Choice(list(TOWERS)), multiple=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True)
@click.option("--out", type=Path, required=True)
def main(
    rows: int,
    batch_size: int,
    repeats: int,
    steps: int,
    epochs: int,
    towers: tuple[str, ...],
    kinds: tuple[str, ...],
    out: Path,
) -> None:
    """Write the cost of each kind in time and memory as Markdown tables."""
    turns = Turns(batch_size, repeats, steps, epochs)
    names = [name for name in kinds or KINDS if name != BASE]
    with tempfile.TemporaryDirectory() as folder, process_group("cpu", 300):
        kept = write_rows(Path(folder), rows, batch_size)
        parts = [_measure_tower(Path(folder), tower, names, turns) for tower in towers or TOWERS]
    head = _HEAD.format(rows=kept, length=LENGTH, dim=VECTOR_DIM, **asdict(turns))
    out.write_text("\n".join([head, *parts]))


if __name__ == "__main__":
    main()
