"""Suggestions for a scenario that does not fit; every suggested change is planned anew."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mail_torchrec.config import Config
from mail_torchrec.embeddings.settings import (
    ComputeKernelName,
    ShardingSettings,
    TableConstraints,
)
from mail_torchrec.planning.estimate import PlanEstimate, Suggestion
from mail_torchrec.planning.estimator import estimate_scenario
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.train.cost.dense_cost import DenseCost

_MOST_RANKS = 4096
_MOST_TIMES_RANKS = 16


def suggest(estimate: PlanEstimate) -> list[Suggestion]:
    """Plans every change that could make a scenario fit.

    Args:
        estimate: of a scenario that does not fit.

    Returns:
        The changes that help, fastest first, then those that do not.
    """
    suggestions = []
    for change, scenario in (*_unstaged(estimate), *_changed_scenarios(estimate.scenario)):
        found = estimate_scenario(scenario, _changed_cost(estimate.dense_cost, scenario.config))
        # If no table uses the new kernel, the change is the same as the one without the kernel.
        if "compute_kernels" in change and found.fits and not _leaves_main_memory(found):
            continue
        suggestions.append(Suggestion(change, found))
    suggestions += _more_ranks(estimate)
    return sorted(
        suggestions,
        key=lambda suggestion: (
            not suggestion.estimate.fits,
            suggestion.estimate.step_time.total,
        ),
    )


def _unstaged(estimate: PlanEstimate) -> Iterator[tuple[str, Scenario]]:
    """Yields the change that needs no copies for checkpoints, where the host's memory is short."""
    scenario = estimate.scenario
    if scenario.config.checkpoint.mode == "async" and "host memory" in estimate.shortage:
        changed = _with(scenario.config, "checkpoint", mode="sync")
        yield "checkpoint.mode=sync", replace(scenario, config=changed)


def _leaves_main_memory(estimate: PlanEstimate) -> bool:
    placements = estimate.plan.placements.values()
    return any(placement.option.compute_kernel != "fused" for placement in placements)


def _changed_cost(cost: DenseCost, config: Config) -> DenseCost:
    """Adapts the towers' cost to a change of ``model.mmd_over_all_ranks``, the only one tried."""
    return cost if config.model.mmd_over_all_ranks else cost.aligned_within_ranks()


def _changed_scenarios(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Yields the changes that can help, one at a time, and the two strongest together."""
    config = scenario.config
    for change, changed in _changed_tables(scenario):
        yield change, replace(scenario, config=changed)
    if config.train.batch_size >= 4:
        half = config.train.batch_size // 2
        changed = _with(config, "train", batch_size=half)
        yield f"train.batch_size={half}", replace(scenario, config=changed)
    has_mmd = config.model.mmd_over_all_ranks and config.model.zero_shot is not None
    if has_mmd and scenario.world_size > 1:
        changed = _with(config, "model", mmd_over_all_ranks=False)
        yield "model.mmd_over_all_ranks=false", replace(scenario, config=changed)


def _changed_tables(scenario: Scenario) -> Iterator[tuple[str, Config]]:
    """Yields changes of the sharding types, the table optimizer and the compute kernels."""
    config = scenario.config
    sharding, optimizer = config.sharding, config.train.tables
    lifted, overrides = _lift(sharding, "sharding_types")
    if "row_wise" not in sharding.sharding_types or overrides:
        types = list(dict.fromkeys([*sharding.sharding_types, "row_wise"]))
        changed = _with(config, "sharding", sharding_types=types, constraints=lifted)
        yield f"sharding.sharding_types=[{', '.join(types)}]{overrides}", changed
    lean = config
    if optimizer.name not in ("sgd", "rowwise_adagrad"):
        rowwise = optimizer.model_copy(update={"name": "rowwise_adagrad"})
        lean = _with(config, "train", tables=rowwise)
        yield "train.tables.name=rowwise_adagrad", lean
    if sharding.replicas is not None:
        # Replicas have no other kernels.
        yield "sharding.replicas=null", _with(config, "sharding", replicas=None)
    elif scenario.hardware.device == "cuda":
        yield from _changed_kernels(config, lean)


def _changed_kernels(config: Config, lean: Config) -> Iterator[tuple[str, Config]]:
    """Yields changes that allow one more compute kernel.

    Args:
        config: of the scenario.
        lean: the same with row-wise Adagrad; ``config`` itself if its optimizer is as lean.
    """
    sharding = config.sharding
    lifted, overrides = _lift(sharding, "compute_kernels")
    kernels: tuple[ComputeKernelName, ...] = ("fused_uvm_caching", "fused_uvm")
    for kernel in kernels:
        if kernel in sharding.compute_kernels:
            continue
        allowed = list(dict.fromkeys([*sharding.compute_kernels, kernel]))
        change = f"sharding.compute_kernels=[{', '.join(allowed)}]{overrides}"
        update = {"compute_kernels": allowed, "constraints": lifted}
        yield change, _with(config, "sharding", **update)
        if kernel != "fused_uvm" and lean is not config:
            both = f"train.tables.name=rowwise_adagrad {change}"
            yield both, _with(lean, "sharding", **update)


def _lift(sharding: ShardingSettings, key: str) -> tuple[dict[str, TableConstraints], str]:
    """Removes one key from the constraints of every table.

    Returns:
        The constraints without the key, and the overrides that remove it, each after a space.
    """
    lifted = {
        table: constraint.model_copy(update={key: None})
        for table, constraint in sharding.constraints.items()
    }
    overrides = "".join(
        f" sharding.constraints.{table}.{key}=null"
        for table, constraint in sharding.constraints.items()
        if getattr(constraint, key) is not None
    )
    return lifted, overrides


def _with(config: Config, section: str, **changes: Any) -> Config:
    """Returns the configuration with some values of a section changed."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def _more_ranks(estimate: PlanEstimate) -> list[Suggestion]:
    """Doubles the ranks until the tables fit.

    If L_d over all ranks leaves no room for more ranks, they are tried without it.
    """
    config = estimate.scenario.config
    own_rows = _with(config, "model", mmd_over_all_ranks=False)
    for changed, text in ((config, ""), (own_rows, " model.mmd_over_all_ranks=false")):
        found = _fewest_ranks(estimate, changed)
        if found is not None:
            return [Suggestion(f"--ranks {found.scenario.world_size}{text}", found)]
        alignment = estimate.dense_cost.alignment
        if alignment is None or not alignment.over_all_ranks:
            break
    return []


def _fewest_ranks(estimate: PlanEstimate, config: Config) -> PlanEstimate | None:
    cost, world_size = _changed_cost(estimate.dense_cost, config), estimate.scenario.world_size
    most = min(_MOST_TIMES_RANKS * world_size, _MOST_RANKS)
    while (world_size := 2 * world_size) <= most:
        dense_memory = cost.memory(config.train.batch_size, world_size)
        if sum(dense_memory.values()) > estimate.capacity:
            return None
        scenario = replace(estimate.scenario, config=config, world_size=world_size)
        found = estimate_scenario(scenario, cost)
        if found.fits:
            return found
    return None
