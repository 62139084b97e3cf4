"""Memory and arithmetic of the towers, measured on small batches of random rows.

The planner needs them beside the workload of the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch, map_tensors
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.distributed.collectives import single_rank
from mail_torchrec.embeddings.tables import build_tables, table_sizes
from mail_torchrec.embeddings.workload import Workload, pooling_factors
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.train.cost.pair_losses import ALIGNMENT, PairLoss, pair_losses
from mail_torchrec.train.cost.random_batches import RandomIds, num_negatives, random_batch
from mail_torchrec.train.cost.step_cost import QuadraticCost, StepCost, measure_cost

_FLOAT_BYTES = 4
# One is trained on while the next one waits.
_BATCHES = 2
# The measured batches have once to four times so many rows; at most, where losses are computed on a
# share of them.
_SPACING, _MOST_SPACING = 4, 64
# Rows of every measured table.
_NUM_IDS = 3


@dataclass(frozen=True)
class DenseCost:
    """Cost of the towers on one rank."""

    parameters: int
    """Number of trainable values of the towers."""
    rows: QuadraticCost
    """Cost of a step of a rank's rows, embeddings included and losses of pairs left out."""
    pairs: tuple[PairLoss, ...] = ()
    """Losses that compare a rank's rows with those of all ranks."""
    batch_per_row: float = 0.0
    """Bytes of a batch's tensors for each row."""
    batch_fixed: float = 0.0
    """Bytes of a batch's tensors whatever its size, such as sampled negatives."""
    has_averages: bool = False
    """Averages of the weights are kept beside them (``train.ema``)."""
    gradient_value_bytes: int = _FLOAT_BYTES
    """Bytes of a gradient's value on its way between ranks."""
    operators: int = 0
    """Operators of a step, forward and backward; views do not count."""

    @property
    def alignment(self) -> PairLoss | None:
        """L_d where it compares rows, None otherwise."""
        return next((loss for loss in self.pairs if loss.purpose == ALIGNMENT), None)

    def aligned_within_ranks(self) -> "DenseCost":
        """Returns the cost with ``model.mmd_over_all_ranks=false``."""
        pairs = (
            replace(loss, over_all_ranks=False) if loss.purpose == ALIGNMENT else loss
            for loss in self.pairs
        )
        return replace(self, pairs=tuple(pairs))

    def memory(self, batch_size: int, world_size: int) -> dict[str, float]:
        """Estimates bytes by purpose; the tables have to leave their sum free.

        Args:
            batch_size: rows of each rank.
            world_size: number of ranks.
        """
        weights = float(_FLOAT_BYTES * self.parameters)
        memory = {"weights": weights, "gradients": weights, "adam": 2 * weights}
        if self.has_averages:
            memory["ema"] = weights
        if world_size > 1:
            memory["all-reduce buckets"] = weights
        memory["activations"] = self.rows.at(batch_size).kept_bytes
        memory["batches"] = _BATCHES * (self.batch_fixed + self.batch_per_row * batch_size)
        return memory | {loss.purpose: loss.memory(batch_size, world_size) for loss in self.pairs}

    def step(self, batch_size: int, world_size: int) -> StepCost:
        """Estimates what a step keeps, computes and writes on a rank.

        Args:
            batch_size: rows of each rank.
            world_size: number of ranks.
        """
        cost = self.rows.at(batch_size)
        for loss in self.pairs:
            cost = cost.plus(loss.at(batch_size, world_size))
        return cost

    def pair_bytes(self, batch_size: int, world_size: int) -> float:
        """Estimates the bytes that a rank receives of rows that it compares its own with."""
        return sum(loss.received(batch_size, world_size) for loss in self.pairs)

    def gradient_bytes(self) -> float:
        """Returns the bytes that the ranks all-reduce in a step."""
        return float(self.gradient_value_bytes * self.parameters)


def build_workload(
    config: Config, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> Workload:
    """Describes the tables and their lookups in a step for the planner.

    Args:
        config: of the run.
        feature_tables: tables by feature key.
        num_rows: table -> rows.
    """
    batch_size = config.train.batch_size
    factors = pooling_factors(
        config.schema_,
        feature_tables,
        config.sharding.pooling_factors,
        batch_size=batch_size,
        num_negatives=num_negatives(config),
    )
    sizes = table_sizes(config.schema_, feature_tables, num_rows)
    stages = config.checkpoint.mode == "async"
    return Workload(sizes, factors, batch_size, config.train.tables.name, stages)


def dense_cost(
    config: Config,
    feature_tables: FeatureTables,
    num_rows: dict[str, int],
    vector_dims: Mapping[str, int] | None = None,
    device: str = "cpu",
) -> DenseCost:
    """Measures the towers by steps on random rows of small tables, on a CPU.

    The state of the random generators is left unchanged.

    Args:
        config: model and schema.
        feature_tables: tables by feature key.
        num_rows: table -> rows; tables of that size are not built.
        vector_dims: number of elements of each vector column; None where there is none.
        device: of the ranks, ``cpu`` or ``cuda``, where the MMD keeps no matrix.
    """
    dims, spacing = vector_dims or {}, _spacing(config)
    with torch.random.fork_rng(devices=[]), single_rank():
        towers = Towers(config.model, config.schema_, feature_tables, num_rows, vector_dims=dims)
        ids = RandomIds(dict.fromkeys(num_rows, _NUM_IDS))
        # The first step may do more, once for the run, and a batch keeps what it was asked for.
        warm_up, *batches = (
            random_batch(config, feature_tables, times * spacing, ids, dims)
            for times in (1, 1, 2, 3, 4)
        )
        pairs = pair_losses(config, towers, device)
        few_rows, cpu = dict.fromkeys(num_rows, _NUM_IDS), torch.device("cpu")
        tables = build_tables(config.schema_, feature_tables, few_rows, cpu)
        model = Mail(*tables, towers).train()
        _measure_step(model, warm_up)
        steps = [_measure_step(model, batch) for batch in batches]
    costs = [
        _without_pairs(cost, pairs, len(batch.labels_B))
        for (cost, _), batch in zip(steps, batches, strict=True)
    ]
    batch_per_row = (batch_bytes(batches[1]) - batch_bytes(batches[0])) / spacing
    parameters = (value for value in towers.parameters() if value.requires_grad)
    return DenseCost(
        parameters=sum(parameter.numel() for parameter in parameters),
        rows=QuadraticCost.through(costs, spacing),
        pairs=pairs,
        batch_per_row=batch_per_row,
        batch_fixed=batch_bytes(batches[0]) - batch_per_row * spacing,
        has_averages=config.train.ema is not None,
        gradient_value_bytes=2 if config.sharding.averages_in_bfloat16 else _FLOAT_BYTES,
        operators=steps[0][1],
    )


def _spacing(config: Config) -> int:
    """Returns a number of rows of whose multiples ``loss_sample_share`` takes equal shares."""
    zero_shot = config.model.zero_shot
    share = 1.0 if zero_shot is None else zero_shot.loss_sample_share

    def error(rows: int) -> tuple[int, float]:
        taken = [ceil(share * times * rows) for times in (1, 2, 3, 4)]
        steps = {more - fewer for fewer, more in pairwise(taken)}
        return len(steps), abs((taken[-1] - taken[0]) / (3 * rows) - share)

    return min(range(_SPACING, _MOST_SPACING + 1), key=error)


def _measure_step(model: Mail, batch: Batch) -> tuple[StepCost, int]:
    found = measure_cost(lambda: model(batch)[0], model.parameters())
    model.zero_grad()  # the next step adds to no gradient
    return found


def _without_pairs(cost: StepCost, pairs: tuple[PairLoss, ...], rows: int) -> StepCost:
    """Subtracts the losses of pairs from a measured step of one rank."""
    for loss in pairs:
        cost = cost.plus(loss.measured.at(*loss.num_rows(rows, 1)), -1)
    return cost


def batch_bytes(batch: Batch) -> int:
    """Returns the bytes of a batch's tensors."""
    found: list[Tensor] = []

    def note(part: Any) -> Any:
        jagged = isinstance(part, KeyedJaggedTensor)
        parts = (part.values(), part.weights_or_none(), part.lengths()) if jagged else (part,)
        found.extend(value for value in parts if value is not None)
        return part

    map_tensors(batch, note)
    return sum(value.nbytes for value in found)
