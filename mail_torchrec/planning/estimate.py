"""Estimate of one scenario: its plan, the memory of every rank and the time of a step.

Shape letters: ``R`` ranks.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mail_torchrec.embeddings.partitioner import CandidatePlan, Placement
from mail_torchrec.embeddings.plan_file import PlanContext, plan_text
from mail_torchrec.embeddings.rates.machine_rates import MachineRates
from mail_torchrec.embeddings.sharding_options import FloatArray
from mail_torchrec.embeddings.sharding_plan import build_sharding_plan
from mail_torchrec.embeddings.storage import MemoryKind, optimizer_state_bytes, weight_bytes
from mail_torchrec.embeddings.workload import Workload
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.train.cost.dense_cost import DenseCost
from mail_torchrec.train.cost.pair_losses import ALIGNMENT

TABLE_PARTS = (
    "table weights",
    "optimizer state",
    "caches, inputs and outputs",
    "copies for checkpoints",
)
_NOTABLE_SHARE = 0.05


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a training step by part, without any overlap."""

    lookup: float
    """Kernels of the tables, forward and backward."""
    communication: float
    """Collectives of the tables, of the gradients, and of rows that ranks compare."""
    dense: float
    """Arithmetic of the towers; by measured rates also their other operators, and what every step
    takes."""

    @property
    def total(self) -> float:
        """Milliseconds of the whole step."""
        return self.lookup + self.communication + self.dense


@dataclass(eq=False)
class PlanEstimate:
    """Memory and time of one scenario under one plan."""

    scenario: Scenario
    workload: Workload
    """Tables and batches of the scenario."""
    dense_cost: DenseCost
    """Memory and arithmetic of the towers."""
    plan: CandidatePlan
    """The fastest plan that fits; if none fits, the one that lacks least memory."""
    fits: bool
    """Whether every rank has room for the plan beside the towers."""
    shortage: str = ""
    """Kinds of memory that are too small and by how much; empty if the plan fits."""
    suggestions: list["Suggestion"] = field(default_factory=list)
    """Changes that were tried because the plan does not fit."""

    @property
    def main_memory(self) -> MemoryKind:
        """Memory that fused tables and the towers lie in."""
        return "hbm" if self.scenario.hardware.device == "cuda" else "host"

    @cached_property
    def dense_memory(self) -> dict[str, float]:
        """Bytes of the towers on every rank, by purpose."""
        scenario = self.scenario
        return self.dense_cost.memory(scenario.config.train.batch_size, scenario.world_size)

    @cached_property
    def table_memory_R(self) -> dict[str, FloatArray]:
        """Bytes of the tables in the main memory by purpose, one of :data:`TABLE_PARTS`.

        Weights and optimizer state are recomputed from the shards.
        """
        weights_R, state_R = np.zeros((2, self.scenario.group.world_size))
        for option, ranks_S in self.plan.placements.values():
            for rank, (rows, columns) in zip(ranks_S, option.sizes_S2.tolist(), strict=True):
                if option.compute_kernel == "fused":
                    weights_R[rank] += weight_bytes(rows, columns)
                    state_R[rank] += optimizer_state_bytes(self.workload.optimizer, rows, columns)
        is_staged = self.workload.stages_checkpoints and self.main_memory == "host"
        staged_R = (weights_R + state_R) * is_staged
        other_R = self.plan.memory_R[self.main_memory] - weights_R - state_R - staged_R
        return dict(zip(TABLE_PARTS, (weights_R, state_R, other_R, staged_R), strict=True))

    @property
    def peak_memory(self) -> float:
        """Bytes of the fullest rank's main memory."""
        return float(self.plan.memory_R[self.main_memory].max()) + sum(self.dense_memory.values())

    @property
    def capacity(self) -> float:
        """Bytes of main memory that a rank may fill."""
        return float(self.scenario.hardware.capacity[self.main_memory])

    @cached_property
    def step_time(self) -> StepTime:
        """Estimated time of a step.

        Collectives end with the slowest rank, so that each part is that of its slowest rank.
        """
        hardware, world_size = self.scenario.hardware, self.scenario.world_size
        batch_size = self.scenario.config.train.batch_size
        if hardware.rates is not None:
            return self._measured_step_time(hardware.rates)
        on_one_host = world_size <= hardware.local_world_size
        link = hardware.intra_gb_s if on_one_host else hardware.inter_gb_s
        # A ring all-reduce sends and receives each gradient twice.
        reduced = 2 * self.dense_cost.gradient_bytes() * (world_size - 1) / world_size
        compared = self.dense_cost.pair_bytes(batch_size, world_size)
        collectives = (reduced + compared) / (link * 1e6 * hardware.efficiency)
        flops = self.dense_cost.step(batch_size, world_size).flops
        arithmetic = flops / (hardware.tflops * 1e9 * hardware.efficiency)
        return StepTime(
            float(self.plan.lookup_R.max()),
            float(self.plan.comms_R.max()) + collectives + self._replicas_ms(),
            arithmetic,
        )

    def _replicas_ms(self) -> float:
        """Estimates the averaging of all table rows and their state over ``sharding.replicas``."""
        replicas, hardware = self.scenario.config.sharding.replicas or 1, self.scenario.hardware
        averaged = self.table_memory_R["table weights"] + self.table_memory_R["optimizer state"]
        num_bytes = float(averaged.max()) if replicas > 1 else 0.0
        if hardware.rates is not None:
            return hardware.rates.all_reduce.ms(num_bytes, calls=2 if num_bytes else 0)
        on_one_host = replicas <= hardware.local_world_size
        link = hardware.intra_gb_s if on_one_host else hardware.inter_gb_s
        return 2 * num_bytes * (replicas - 1) / replicas / (link * 1e6 * hardware.efficiency)

    def _measured_step_time(self, rates: MachineRates) -> StepTime:
        """Estimates the time of a step by measured rates."""
        world_size, cost = self.scenario.world_size, self.dense_cost
        batch_size = self.scenario.config.train.batch_size
        collectives = 0.0
        if world_size > 1:
            collectives = rates.all_reduce.ms(cost.gradient_bytes())
            compared = [loss.received(batch_size, world_size) for loss in cost.pairs]
            calls = 2 * sum(map(bool, compared))
            collectives += rates.all_to_all.ms(sum(compared), calls=calls)
        step = cost.step(batch_size, world_size)
        products = step.flops / (rates.tower_tflops * 1e9)
        operators = rates.steps.towers_ms(cost.operators, step.written_bytes)
        return StepTime(
            float(self.plan.lookup_R.max()),
            float(self.plan.comms_R.max()) + collectives + self._replicas_ms(),
            products + operators,
        )

    @property
    def rows_per_second(self) -> float:
        """Rows of all ranks that train in a second."""
        rows = self.scenario.world_size * self.scenario.config.train.batch_size
        return rows / self.step_time.total * 1000

    @property
    def imbalance(self) -> dict[str, float]:
        """Ratios of the largest to the mean rank, of the tables' memory and of their time."""
        memory_R = self.plan.memory_R[self.main_memory]
        time_R = self.plan.lookup_R + self.plan.comms_R
        return {
            "memory": float(memory_R.max() / max(memory_R.mean(), 1e-12)),
            "time": float(time_R.max() / max(time_R.mean(), 1e-12)),
        }

    @property
    def notes(self) -> list[str]:
        """Remarks on unusual costs of this scenario."""
        num_bytes = self.dense_memory.get(ALIGNMENT, 0.0)
        alignment, ranks = self.dense_cost.alignment, self.scenario.world_size
        if alignment is None or num_bytes <= _NOTABLE_SHARE * self.capacity:
            return []
        of_all = alignment.over_all_ranks and ranks > 1
        growth = "the square of the batch"
        if not alignment.cost.per_pair.kept_bytes:
            growth = "the rows of all ranks" if of_all else "the batch"
        elif of_all:
            growth = f"ranks times {growth}"
        change = "a smaller train.batch_size or model.zero_shot.loss_sample_share helps"
        if of_all:
            change = "model.mmd_over_all_ranks=false compares each rank's own rows"
        rows = "the rows of all ranks" if of_all else "a rank's own rows"
        return [
            f"L_d over {rows} takes {num_bytes / 2**30:.1f} GiB of each rank, and grows with "
            f"{growth}: {change}"
        ]

    def plan_text(self) -> str:
        """Returns the text of a plan file for ``train --plan``."""
        hardware, (world_size, local) = self.scenario.hardware, self.scenario.group
        local_world_size = min(local, world_size)
        plan = build_sharding_plan(
            self.plan, self.scenario.config.sharding, hardware.device, local_world_size
        )
        context = PlanContext(
            world_size,
            local_world_size,
            hardware.device,
            self.workload.optimizer,
            self.workload.sizes,
        )
        return plan_text(plan, context)

    def as_json(self) -> dict[str, Any]:
        """Returns the numbers for ``report.json``: bytes and milliseconds."""
        step = self.step_time
        return {
            "ranks": self.scenario.world_size,
            "batch_size": self.scenario.config.train.batch_size,
            "varied": list(self.scenario.varied),
            "fits": self.fits,
            "shortage": self.shortage,
            "capacity": self.capacity,
            "peak_memory": self.peak_memory,
            "host_memory": float(self.plan.memory_R["host"].max()),
            "dense_memory": self.dense_memory,
            "table_memory_of_ranks": {
                part: bytes_R.round().tolist() for part, bytes_R in self.table_memory_R.items()
            },
            "step_ms": {
                "lookup": step.lookup,
                "communication": step.communication,
                "dense": step.dense,
            },
            "rows_per_second": self.rows_per_second,
            "imbalance": self.imbalance,
            "notes": self.notes,
            "suggestions": [suggestion.as_json() for suggestion in self.suggestions],
            "tables": {
                table: _placement_json(placement)
                for table, placement in self.plan.placements.items()
            },
        }


def _placement_json(placement: Placement) -> dict[str, Any]:
    option, ranks_S = placement
    rows, columns = (int(end) for end in (option.offsets_S2 + option.sizes_S2).max(axis=0))
    return {
        "rows": rows,
        "columns": columns,
        "sharding_type": option.sharding_type,
        "compute_kernel": option.compute_kernel,
        "shards": len(ranks_S),
        "first_ranks": ranks_S[:8].tolist(),
    }


@dataclass(frozen=True)
class Suggestion:
    """A change of a scenario that does not fit, with its own estimate."""

    change: str
    """Change as the command line takes it."""
    estimate: PlanEstimate
    """Estimate of the changed scenario."""

    def as_json(self) -> dict[str, Any]:
        """Returns the numbers for ``report.json``."""
        return {
            "change": self.change,
            "fits": self.estimate.fits,
            "shortage": self.estimate.shortage,
            "step_ms": self.estimate.step_time.total,
            "peak_memory": self.estimate.peak_memory,
        }

    def sentence(self) -> str:
        """Describes the change and its effect."""
        estimate = self.estimate
        if not estimate.fits:
            return f"{self.change}: does not help, it still lacks {estimate.shortage}"
        return (
            f"{self.change}: fits, {estimate.peak_memory / 2**30:.1f} GiB a rank, "
            f"{estimate.step_time.total:.1f} ms a step"
        )
