"""Estimator of scenarios: plans the tables beside the towers' cost, or estimates a saved plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.embeddings.partitioner import (
    CandidatePlan,
    Placement,
    fastest_fitting_plan,
    least_excess_plan,
)
from mail_torchrec.embeddings.planner import (
    candidate_plans,
    describe_shortage,
    feasible_options,
    plan_latency,
    table_capacity,
)
from mail_torchrec.embeddings.settings import TableConstraints
from mail_torchrec.embeddings.sharding import build_sharders
from mail_torchrec.embeddings.sharding_options import ShardingOption
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.planning.estimate import PlanEstimate
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.cost.dense_cost import DenseCost, build_workload, dense_cost


def estimate_scenario(scenario: Scenario, cost: DenseCost | None = None) -> PlanEstimate:
    """Plans a scenario and estimates its memory and time.

    Args:
        scenario: the job.
        cost: of the towers, if it is known already.

    Raises:
        ValueError: a constraint cannot be met.
    """
    inputs = _PlanningInputs(scenario, cost)
    plans = inputs.candidates()
    fitting = fastest_fitting_plan(plans, inputs.capacity)
    return inputs.estimate(fitting or least_excess_plan(plans, inputs.capacity))


def estimate_best_plans(scenario: Scenario, cost: DenseCost, most: int) -> list[PlanEstimate]:
    """Estimates plans of a scenario that fit and differ in how a table is cut, the fastest first.

    Args:
        scenario: the job.
        cost: of the towers.
        most: number of plans at most; of each kind there is one, the fastest.

    Raises:
        ValueError: a constraint cannot be met.
    """
    inputs = _PlanningInputs(scenario, cost)
    found: dict[tuple[Any, ...], CandidatePlan] = {}
    for plan in inputs.candidates(of_each_kind=True):
        if not plan.excess(inputs.capacity):
            found.setdefault(plan.kind, plan)
    return [inputs.estimate(plan) for plan in list(found.values())[:most]]


def estimate_saved_plan(
    scenario: Scenario, tree: dict[str, Any], cost: DenseCost | None = None
) -> PlanEstimate:
    """Estimates memory and time of a scenario under a saved plan.

    Args:
        scenario: the job.
        tree: content of the plan file.
        cost: of the towers, if it is known already.

    Raises:
        ValueError: the plan was not made for this scenario's tables.
    """
    inputs = _PlanningInputs(replace(scenario, config=_constrained(scenario.config, tree)), cost)
    placements = {
        table: _saved_placement(table, entry, inputs.options.get(table, []))
        for table, entry in tree["tables"].items()
    }
    latency = plan_latency(scenario.hardware, inputs.workload.optimizer)
    ranks = scenario.group.world_size
    return inputs.estimate(CandidatePlan.from_placements(placements, ranks, latency))


def _constrained(config: Config, tree: dict[str, Any]) -> Config:
    """Constrains every table to the sharding type and compute kernel of a saved plan."""
    constraints = {
        table: TableConstraints(
            sharding_types=[entry["sharding_type"]], compute_kernels=[entry["compute_kernel"]]
        )
        for table, entry in tree["tables"].items()
    }
    sharding = config.sharding.model_copy(update={"constraints": constraints})
    return config.model_copy(update={"sharding": sharding})


def _saved_placement(table: str, entry: dict[str, Any], options: list[ShardingOption]) -> Placement:
    num_shards = len(entry["shards"])
    for option in options:
        if len(option.sizes_S2) == num_shards:
            ranks_S = np.asarray([shard[0] for shard in entry["shards"]], np.int64)
            return Placement(option, ranks_S)
    raise ValueError(
        f"the plan cuts '{table}' into {num_shards} shards, which its configuration does not "
        "explain"
    )


class _PlanningInputs:
    """Workload, sharding options and capacity of a scenario, before a plan is chosen."""

    def __init__(self, scenario: Scenario, cost: DenseCost | None) -> None:
        config, group = scenario.config, scenario.group
        hardware = replace(scenario.hardware, local_world_size=group.local_world_size)
        feature_tables = config_feature_tables(config)
        of_run = config.sharding, config.train.batch_size
        device = torch.device(hardware.device)
        self.scenario, self.hardware = scenario, hardware
        self.workload = build_workload(config, feature_tables, scenario.num_rows)
        self.options = feasible_options(
            _build_collections(scenario, feature_tables),
            build_sharders(config.train.tables, config.train.betas, device, *of_run),
            config.sharding,
            self.workload,
            hardware,
            group.world_size,
        )
        self.cost = cost or dense_cost(
            config, feature_tables, scenario.num_rows, scenario.vector_dims, hardware.device
        )
        dense_memory = self.cost.memory(config.train.batch_size, scenario.world_size)
        self.capacity = table_capacity(hardware, sum(dense_memory.values()))

    def candidates(self, *, of_each_kind: bool = False) -> list[CandidatePlan]:
        ranks, optimizer = self.scenario.group.world_size, self.workload.optimizer
        return candidate_plans(
            self.options, self.hardware, ranks, optimizer, of_each_kind=of_each_kind
        )

    def estimate(self, plan: CandidatePlan) -> PlanEstimate:
        shortage = describe_shortage(plan, self.capacity)
        return PlanEstimate(
            self.scenario, self.workload, self.cost, plan, fits=not shortage, shortage=shortage
        )


def _build_collections(scenario: Scenario, feature_tables: FeatureTables) -> torch.nn.Module:
    """Builds both collections on the meta device, under the names that the model gives them."""
    pooled, unpooled = build_tables(
        scenario.config.schema_, feature_tables, scenario.num_rows, torch.device("meta")
    )
    return torch.nn.ModuleDict({"pooled_tables": pooled, "unpooled_tables": unpooled})
