"""Candidate plans: a sharding option and ranks for every table.

The search never looks at capacities. It proposes a list of candidate plans, from the fastest to the
one that needs least memory, and the caller takes the fastest that fits: so more memory can never
turn a plan that fits into one that does not. Every candidate is made greedily, heaviest table
first. A table takes the option and the ranks that increase
``slowest rank / average + memory_weight * fullest rank / average`` least.

Shape letters: ``R`` ranks, ``H`` hosts, ``L`` ranks a host, ``S`` shards of one option.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.embeddings.rates.shard_times import PlanLatency
from mail_torchrec.embeddings.sharding_options import FloatArray, ShardingOption
from mail_torchrec.embeddings.storage import MEMORY_KINDS, MemoryKind

RankArray = NDArray[np.int64]

_MEMORY_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e6)
# Of the searches with few sharding types.
_FEW_WEIGHTS = (0.0, 1.0, 1e6)
_BYTE_COSTS: dict[MemoryKind, float] = {"hbm": 1.0, "host": 0.05}
"""Cost of a byte of each memory relative to the GPU's. The larger memories should be filled evenly
too, so that their bytes are not free."""
# The totals count a little beside the maxima; otherwise the cost of a table that stays below the
# maximum would not matter.
_TOTAL_WEIGHT = 0.1


class Placement(NamedTuple):
    """The sharding option of one table and the rank of each of its shards."""

    option: ShardingOption
    ranks_S: RankArray


@dataclass(eq=False)
class CandidatePlan:
    """A placement of every table, with the memory and time of every rank."""

    placements: dict[str, Placement]
    """By table name."""
    memory_R: dict[MemoryKind, FloatArray]
    """Bytes of the tables on each rank, by kind of memory."""
    lookup_R: FloatArray
    """Milliseconds a step in the tables' kernels."""
    comms_R: FloatArray
    """Milliseconds a step in the tables' collectives."""

    @classmethod
    def from_placements(
        cls, placements: dict[str, Placement], world_size: int, latency: PlanLatency | None = None
    ) -> "CandidatePlan":
        """Adds up what each rank carries under the placements, and what each plan of theirs takes.

        Args:
            placements: by table name.
            world_size: R.
            latency: of measured rates; None where these are not known.
        """
        memory_R: dict[MemoryKind, FloatArray] = {
            kind: np.zeros(world_size) for kind in MEMORY_KINDS
        }
        lookup_R, comms_R = np.zeros(world_size), np.zeros(world_size)
        for option, ranks_S in placements.values():
            np.add.at(lookup_R, ranks_S, option.lookup_S)
            np.add.at(comms_R, ranks_S, option.comms_S)
            for kind in MEMORY_KINDS:
                np.add.at(memory_R[kind], ranks_S, option.memory_S[kind])
        plan = cls(placements, memory_R, lookup_R, comms_R)
        if latency is not None:
            latency.add(plan.groups, lookup_R, comms_R)
        return plan

    @property
    def kind(self) -> tuple[tuple[object, ...], ...]:
        """Cuts of the tables, whatever ranks their shards lie on."""
        return tuple(sorted(_cut(placement.option) for placement in self.placements.values()))

    @property
    def layout(self) -> tuple[object, ...]:
        """Shards of the ranks; equal for plans that exchange equal ranks or equal tables."""
        of_ranks: list[list[tuple[object, ...]]] = [[] for _ in self.lookup_R]
        for option, ranks_S in self.placements.values():
            sizes_S2, times_S = option.sizes_S2.tolist(), option.time_S.tolist()
            for rank, size, ms in zip(ranks_S.tolist(), sizes_S2, times_S, strict=True):
                of_ranks[rank].append((*_cut(option), *size, ms))
        return tuple(sorted(tuple(sorted(shards)) for shards in of_ranks))

    @property
    def groups(self) -> dict[tuple[str, str], set[int]]:
        """Ranks that hold shards of each collection and sharding type."""
        found: dict[tuple[str, str], set[int]] = {}
        for option, ranks_S in self.placements.values():
            group = option.module_path, option.sharding_type
            found.setdefault(group, set()).update(ranks_S.tolist())
        return found

    @property
    def step_ms(self) -> float:
        """Milliseconds a step spends on the tables: the slowest lookup and the slowest collective.

        Collectives end with the slowest rank, so that each part counts with its maximum.
        """
        return float(self.lookup_R.max() + self.comms_R.max())

    def excess(self, capacity: dict[MemoryKind, float]) -> dict[MemoryKind, float]:
        """Returns the bytes by which the fullest rank exceeds each memory that is too small."""
        over = {kind: float(self.memory_R[kind].max()) - capacity[kind] for kind in MEMORY_KINDS}
        return {kind: lacking for kind, lacking in over.items() if lacking > 0}


def _cut(option: ShardingOption) -> tuple[object, ...]:
    """Returns what a table is and how it is cut, and not its name."""
    rows, columns = (option.offsets_S2 + option.sizes_S2).max(axis=0).tolist()
    how = option.module_path, option.sharding_type, option.compute_kernel
    return (*how, rows, columns, float(option.time_S.sum()))


def propose_plans(
    options: dict[str, list[ShardingOption]],
    world_size: int,
    local_world_size: int,
    latency: PlanLatency | None = None,
    *,
    of_each_kind: bool = False,
) -> list[CandidatePlan]:
    """Proposes candidate plans, from the fastest to the slowest.

    The greedy search does not see latencies. Where these are known, plans of few sharding types are
    proposed too.

    Args:
        options: sharding options by table name.
        world_size: R.
        local_world_size: L; it divides R.
        latency: of measured rates; None where these are not known.
        of_each_kind: propose plans of few sharding types without latencies too.
    """
    searches = [(options, *how) for how in product((True, False), _MEMORY_WEIGHTS)]
    if of_each_kind or latency is not None:
        searches += [(few, True, w) for few in _of_few_types(options) for w in _FEW_WEIGHTS]
    plans = []
    for tried, by_time, memory_weight in searches:
        partitioner = _GreedyPartitioner(tried, world_size, local_world_size, memory_weight)
        for table in partitioner.heaviest_first(by_time):
            partitioner.place(table)
        plans.append(CandidatePlan.from_placements(partitioner.placements, world_size, latency))
    return sorted(plans, key=lambda plan: plan.step_ms)


def _of_few_types(
    options: dict[str, list[ShardingOption]],
) -> Iterator[dict[str, list[ShardingOption]]]:
    """Yields the options of one sharding type for each collection, every one with every other.

    Tables without it keep all of their options.
    """
    types: dict[str, dict[str, None]] = {}
    for one in (one for found in options.values() for one in found):
        types.setdefault(one.module_path, {})[one.sharding_type] = None
    for names in product(*types.values()):
        chosen = set(zip(types, names, strict=True))
        yield {
            table: [one for one in found if (one.module_path, one.sharding_type) in chosen] or found
            for table, found in options.items()
        }


def fastest_fitting_plan(
    plans: Sequence[CandidatePlan], capacity: dict[MemoryKind, float]
) -> CandidatePlan | None:
    """Returns the first plan that fits every rank; None if there is none.

    Args:
        plans: fastest first.
        capacity: bytes that tables may fill on a rank.
    """
    return next((plan for plan in plans if not plan.excess(capacity)), None)


def least_excess_plan(
    plans: Sequence[CandidatePlan], capacity: dict[MemoryKind, float]
) -> CandidatePlan:
    """Returns the plan that exceeds the capacity by the fewest bytes."""
    return min(plans, key=lambda plan: sum(plan.excess(capacity).values()))


@dataclass
class _GreedyPartitioner:
    """Places tables one after another, each where it increases the objective least."""

    options: dict[str, list[ShardingOption]]
    world_size: int
    local_world_size: int
    memory_weight: float
    placements: dict[str, Placement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.time_R, self.cost_R = np.zeros(self.world_size), np.zeros(self.world_size)
        least_time = sum(self._least_time(table) for table in self.options)
        least_cost = sum(self._least_memory_cost(table) for table in self.options)
        self.mean_time = least_time / self.world_size + 1e-12
        self.mean_cost = least_cost / self.world_size + 1e-12

    def _least_time(self, table: str) -> float:
        return min(float(option.time_S.sum()) for option in self.options[table])

    def _least_memory_cost(self, table: str) -> float:
        return min(float(_memory_cost_S(option).sum()) for option in self.options[table])

    def heaviest_first(self, by_time: bool) -> list[str]:
        """Orders the tables for placement: packing the largest first packs best."""
        weight = self._least_time if by_time else self._least_memory_cost
        return sorted(self.options, key=weight, reverse=True)

    def place(self, table: str) -> None:
        """Places a table by the option that increases the objective least."""
        best: tuple[float, Placement] | None = None
        for option in self.options[table]:
            placement = Placement(option, self._least_loaded_ranks_S(option))
            objective = self._objective(placement)
            if best is None or objective < best[0]:
                best = objective, placement
        assert best is not None
        option, ranks_S = self.placements[table] = best[1]
        np.add.at(self.time_R, ranks_S, option.time_S)
        np.add.at(self.cost_R, ranks_S, _memory_cost_S(option))

    def _objective(self, placement: Placement) -> float:
        """Computes the objective after a placement.

        If there are more shards than ranks, the maximum sees one shard of each rank at a time.
        """
        option, ranks_S = placement
        time_S, cost_S = option.time_S, _memory_cost_S(option)
        slowest = max(self.time_R.max(), (self.time_R[ranks_S] + time_S).max())
        fullest = max(self.cost_R.max(), (self.cost_R[ranks_S] + cost_S).max())
        time = (slowest + _TOTAL_WEIGHT * time_S.sum()) / self.mean_time
        memory = self.memory_weight * (fullest + _TOTAL_WEIGHT * cost_S.sum()) / self.mean_cost
        return float(time + memory)

    def _load_R(self) -> FloatArray:
        memory_R = self.memory_weight * self.cost_R / self.mean_cost
        load_R: FloatArray = self.time_R / self.mean_time + memory_R
        return load_R

    def _least_loaded_ranks_S(self, option: ShardingOption) -> RankArray:
        """Returns the least loaded ranks that an option's shards may lie on."""
        num_shards, load_R = len(option.sizes_S2), self._load_R()
        if option.partition_by == "uniform":
            return np.arange(self.world_size)
        if option.partition_by == "device":
            return np.resize(np.argsort(load_R, kind="stable"), num_shards)
        return self._ranks_of_hosts_S(option, load_R)

    def _ranks_of_hosts_S(self, option: ShardingOption, load_R: FloatArray) -> RankArray:
        """Returns ranks so that each group of row shards lies on the ranks of one host."""
        num_shards, load_HL = len(option.sizes_S2), load_R.reshape(-1, self.local_world_size)
        hosts_H = np.argsort(load_HL.max(axis=1), kind="stable")
        every_local_rank = np.arange(self.local_world_size)
        if option.partition_by == "multi_host":  # L row shards for each group of columns
            groups = np.resize(hosts_H, num_shards // self.local_world_size)
            ranks_S: RankArray = groups[:, None] * self.local_world_size + every_local_rank
            return ranks_S.ravel()
        if num_shards == self.local_world_size:  # rows over the ranks of a host, in their order
            local_ranks_S = every_local_rank
        else:
            local_ranks_S = np.resize(np.argsort(load_HL[hosts_H[0]], kind="stable"), num_shards)
        on_host_S: RankArray = hosts_H[0] * self.local_world_size + local_ranks_S
        return on_host_S


def _memory_cost_S(option: ShardingOption) -> FloatArray:
    """Computes the cost of each shard's memory over all kinds of memory."""
    costs = [_BYTE_COSTS[kind] * option.memory_S[kind] for kind in MEMORY_KINDS]
    cost_S: FloatArray = np.sum(costs, axis=0)
    return cost_S
