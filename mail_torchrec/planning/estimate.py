"""The answer to one point: does it fit, by which plan, with how much memory and time."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.embeddings.partitioner import Layout, fastest_that_fits, layout_of, nearest_miss
from mail_torchrec.embeddings.plan_file import MadeFor, plan_text
from mail_torchrec.embeddings.planner import (
    Workload,
    capacity_for_tables,
    choices_of,
    layouts_of,
    sharding_plan,
    shortage,
)
from mail_torchrec.embeddings.sharding import sharders
from mail_torchrec.embeddings.sharding_options import (
    Choice,
    Floats,
    Memory,
    state_bytes,
    weight_bytes,
)
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.planning.scenarios import Case
from mail_torchrec.train.assembly import feature_tables_of, workload_of
from mail_torchrec.train.dense_cost import DenseCost, dense_cost

TABLE_PARTS = ("table weights", "optimizer state", "caches, inputs and outputs")


@dataclass(frozen=True)
class Step:
    """Milliseconds of a step, nothing overlapping."""

    lookup: float
    communication: float
    dense: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.lookup + self.communication + self.dense


@dataclass(eq=False)
class Answer:
    """What planning one point said. Arrays have an entry a rank ``R``."""

    case: Case
    workload: Workload
    dense: DenseCost
    layout: Layout
    """The fastest that fits, else the one that lacks least."""
    fits: bool
    lacks: str = ""
    """What is short by how much; empty where it fits."""
    remedies: list[Any] = field(default_factory=list)
    """See ``remedies.py``."""

    @property
    def main_memory(self) -> Memory:
        """Where fused tables and the towers lie."""
        return "hbm" if self.case.machine.device == "cuda" else "host"

    @cached_property
    def dense_memory(self) -> dict[str, float]:
        """Bytes of the towers on every rank, by purpose."""
        return self.dense.memory(self.case.config.train.batch_size, self.case.ranks)

    @cached_property
    def table_memory_R(self) -> dict[str, Floats]:
        """Bytes of the tables in the main memory, by purpose (:data:`TABLE_PARTS`), recomputed from the shards."""
        weights_R, state_R = np.zeros(self.case.ranks), np.zeros(self.case.ranks)
        for choice, ranks in self.layout.chosen.values():
            for rank, (rows, columns) in zip(ranks, choice.sizes_S2.tolist(), strict=True):
                if choice.kernel == "fused":
                    weights_R[rank] += weight_bytes(rows, columns)
                if choice.kernel in ("fused", "key_value"):
                    state_R[rank] += state_bytes(self.workload.optimizer, rows, columns)
        rest_R = self.layout.memory_R[self.main_memory] - weights_R - state_R
        return dict(zip(TABLE_PARTS, (weights_R, state_R, rest_R), strict=True))

    @property
    def peak_memory(self) -> float:
        """Bytes of the fullest rank's main memory."""
        return float(self.layout.memory_R[self.main_memory].max()) + sum(self.dense_memory.values())

    @property
    def capacity(self) -> float:
        """Bytes of main memory that a rank may fill."""
        return float(self.case.machine.capacity[self.main_memory])

    @cached_property
    def step(self) -> Step:
        """An estimate. Collectives end with the slowest rank, so that each part is that of its slowest rank."""
        machine, ranks, batch_size = (
            self.case.machine,
            self.case.ranks,
            self.case.config.train.batch_size,
        )
        link = machine.intra_gb_s if ranks <= machine.ranks_a_host else machine.inter_gb_s
        reduced = (
            2 * self.dense.gradient_bytes() * (ranks - 1) / ranks
        )  # a ring sends and takes each gradient twice
        gathered = 8 * batch_size * (ranks - 1) * self.dense.code_dim
        collectives = (reduced + gathered) / (link * 1e6 * machine.efficiency)
        arithmetic = self.dense.flops(batch_size, ranks) / (
            machine.tflops * 1e9 * machine.efficiency
        )
        return Step(
            float(self.layout.lookup_R.max()),
            float(self.layout.comms_R.max()) + collectives,
            arithmetic,
        )

    @property
    def rows_per_second(self) -> float:
        """Of all ranks."""
        return self.case.ranks * self.case.config.train.batch_size / self.step.total * 1000

    @property
    def imbalance(self) -> dict[str, float]:
        """Fullest over average rank, of the tables' memory; slowest over average, of their time."""
        memory_R, time_R = (
            self.layout.memory_R[self.main_memory],
            self.layout.lookup_R + self.layout.comms_R,
        )
        return {
            "memory": float(memory_R.max() / max(memory_R.mean(), 1e-12)),
            "time": float(time_R.max() / max(time_R.mean(), 1e-12)),
        }

    @property
    def notes(self) -> list[str]:
        """What a person should know of this point."""
        mmd = self.dense_memory.get("mmd over all ranks", 0.0)
        if mmd > 0.05 * self.capacity:
            return [
                f"L_d over the rows of all ranks takes {mmd / 2**30:.1f} GiB of each rank, and "
                "grows with ranks times the square of the "
                "batch: model.mmd_over_all_ranks=false compares each rank's own rows"
            ]
        return []

    def plan_text(self) -> str:
        """The plan as ``train --plan`` takes it."""
        machine, ranks = self.case.machine, self.case.ranks
        ranks_a_host = min(machine.ranks_a_host, ranks)
        plan = sharding_plan(self.layout, self.case.config.sharding, machine.device, ranks_a_host)
        return plan_text(
            plan,
            MadeFor(
                ranks, ranks_a_host, machine.device, self.workload.optimizer, self.workload.sizes
            ),
        )

    def content(self) -> dict[str, Any]:
        """The answer's numbers, for JSON: bytes and milliseconds."""
        return {
            "ranks": self.case.ranks,
            "batch_size": self.case.config.train.batch_size,
            "varied": list(self.case.varied),
            "fits": self.fits,
            "lacks": self.lacks,
            "capacity": self.capacity,
            "peak_memory": self.peak_memory,
            "host_memory": float(self.layout.memory_R["host"].max()),
            "ssd": float(self.layout.memory_R["ssd"].max()),
            "dense_memory": self.dense_memory,
            "table_memory_of_ranks": {
                part: bytes_R.round().tolist() for part, bytes_R in self.table_memory_R.items()
            },
            "step_ms": {
                "lookup": self.step.lookup,
                "communication": self.step.communication,
                "dense": self.step.dense,
            },
            "rows_per_second": self.rows_per_second,
            "imbalance": self.imbalance,
            "notes": self.notes,
            "remedies": [remedy.content() for remedy in self.remedies],
            "tables": {
                table: _placed(choice, ranks.tolist())
                for table, (choice, ranks) in self.layout.chosen.items()
            },
        }


def _placed(choice: Choice, ranks: list[int]) -> dict[str, Any]:
    rows, columns = (
        int((choice.offsets_S2[:, axis] + choice.sizes_S2[:, axis]).max()) for axis in (0, 1)
    )
    return {
        "rows": rows, "columns": columns, "sharding_type": choice.sharding_type, "kernel": choice.kernel, "shards": len(ranks),
        "first_ranks": ranks[:8],
    }  # fmt: skip


def answer(case: Case, dense: DenseCost | None = None) -> Answer:
    """Plans one point.

    Args:
        case: the point.
        dense: the towers' cost, where it is known already.

    Raises:
        ValueError: a constraint that cannot be met.
    """
    workload, choices, dense = _asked(case, dense)
    layouts = layouts_of(choices, case.machine, case.ranks)
    capacity = capacity_for_tables(
        case.machine, sum(dense.memory(case.config.train.batch_size, case.ranks).values())
    )
    layout = fastest_that_fits(layouts, capacity)
    return _judged(case, workload, dense, layout or nearest_miss(layouts, capacity), capacity)


def answer_of_plan(case: Case, tree: dict[str, Any]) -> Answer:
    """Estimates a plan that was read from a file.

    Raises:
        ValueError: the plan is not of this case's tables.
    """
    placed = tree["tables"].items()
    sharding = case.config.sharding.model_copy(
        update={
            "tables": {table: [entry["sharding_type"]] for table, entry in placed},
            "table_kernels": {table: [entry["compute_kernel"]] for table, entry in placed},
        }
    )
    case = replace(case, config=case.config.model_copy(update={"sharding": sharding}))
    workload, choices, dense = _asked(case, None)
    chosen = {}
    for table, entry in placed:
        same = [
            choice
            for choice in choices.get(table, [])
            if len(choice.sizes_S2) == len(entry["shards"])
        ]
        if not same:
            raise ValueError(
                f"the plan cuts '{table}' into {len(entry['shards'])} shards, which its "
                "configuration does not explain"
            )
        chosen[table] = same[0], np.asarray([shard[0] for shard in entry["shards"]], np.int64)
    capacity = capacity_for_tables(
        case.machine, sum(dense.memory(case.config.train.batch_size, case.ranks).values())
    )
    return _judged(case, workload, dense, layout_of(chosen, case.ranks), capacity)


def _asked(
    case: Case, dense: DenseCost | None
) -> tuple[Workload, dict[str, list[Choice]], DenseCost]:
    config, machine = case.config, case.machine
    feature_tables = feature_tables_of(config)
    workload = workload_of(config, feature_tables, case.num_rows)
    both = sharders(config.train.tables, config.train.betas, torch.device(machine.device))
    choices = choices_of(
        _collections(case, feature_tables), both, config.sharding, workload, machine, case.ranks
    )
    return workload, choices, dense or dense_cost(config, feature_tables, case.num_rows)


def _judged(
    case: Case, workload: Workload, dense: DenseCost, layout: Layout, capacity: dict[Memory, float]
) -> Answer:
    fits = not layout.excess(capacity)
    return Answer(case, workload, dense, layout, fits, "" if fits else shortage(layout, capacity))


def _collections(case: Case, feature_tables: FeatureTables) -> torch.nn.Module:
    """Both collections on the meta device, under the names that the model has for them."""
    pooled, unpooled = build_tables(
        case.config.schema_, feature_tables, case.num_rows, torch.device("meta")
    )
    return torch.nn.ModuleDict({"pooled_tables": pooled, "unpooled_tables": unpooled})
