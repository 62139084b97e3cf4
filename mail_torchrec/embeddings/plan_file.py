"""Sharding plan files (``plan.json``): the placement of every shard and the job it was made for.

A run leaves one, ``mail-torchrec plan`` writes one, ``mail-torchrec train --plan`` reads one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from mail_torchrec.embeddings.settings import ComputeKernelName, OptimizerName, ShardingTypeName
from mail_torchrec.embeddings.sharding_plan import PlacedShard, build_parameter_sharding
from mail_torchrec.embeddings.tables import collection_key, table_of_key
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.safe_paths import read_document
from mail_torchrec.utils.unique_keys import parse_json

VERSION = 2


_Count = Annotated[int, Field(ge=0, le=2**53)]


class _SavedTable(Settings):
    """Placement of a table in a plan file."""

    module: str
    sharding_type: ShardingTypeName
    compute_kernel: ComputeKernelName
    cache_load_factor: float | None = None
    shards: list[tuple[_Count, _Count, _Count, _Count, _Count]] = Field(min_length=1)


class _SavedContext(Settings):
    """Job of a plan file, see :class:`PlanContext`."""

    world_size: Annotated[int, Field(ge=1, le=2**31)]
    local_world_size: Annotated[int, Field(ge=1, le=2**31)]
    device: Literal["cpu", "cuda"]
    optimizer: OptimizerName
    tables: dict[str, tuple[_Count, _Count]]


class _SavedPlan(Settings):
    """Content of a plan file."""

    version: int
    made_for: _SavedContext
    tables: dict[str, _SavedTable]


@dataclass(frozen=True)
class PlanContext:
    """Properties of a job that a plan depends on; a plan fits every job with the same ones."""

    world_size: int
    """Ranks that the tables are sharded over: those of the job, or of one of its replicas."""
    local_world_size: int
    """Those of them on one host."""
    device: str
    """``cuda`` or ``cpu``."""
    optimizer: str
    """Fused optimizer of the tables, whose state takes memory too."""
    tables: dict[str, tuple[int, int]]
    """Stored rows and columns by table name."""

    def differences(self, job: "PlanContext") -> list[str]:
        """Describes everything in which a job differs from the one the plan was made for."""
        pairs = (
            ("world size {0}, this job has {1} ranks", self.world_size, job.world_size),
            ("{0} ranks a host, this job has {1}", self.local_world_size, job.local_world_size),
            ("{0}, this job runs on {1}", self.device, job.device),
            ("train.tables.name={0}, this job has {1}", self.optimizer, job.optimizer),
        )
        found = [text.format(mine, theirs) for text, mine, theirs in pairs if mine != theirs]
        return found + self._table_differences(job)

    def _table_differences(self, job: "PlanContext") -> list[str]:
        found = []
        for name in sorted({*self.tables, *job.tables}):
            mine, theirs = self.tables.get(name), job.tables.get(name)
            if theirs is None:
                found.append(f"a table '{name}', which this job has not")
            elif mine is None:
                found.append(f"no table '{name}', which this job has")
            elif mine != theirs:
                found.append(
                    f"'{name}' of {mine[0]:,} x {mine[1]}, here it has {theirs[0]:,} x {theirs[1]}"
                )
        return found


def plan_text(plan: ShardingPlan, context: PlanContext) -> str:
    """Returns the text of a plan file, one line a table.

    A shard is written as ``[rank, first row, first column, rows, columns]``.
    """
    lines = [
        f"{json.dumps(table_of_key(key))}: {json.dumps(_table_entry(module, parameter))}"
        for module, parameters in plan.plan.items()
        for key, parameter in parameters.items()
    ]
    made_for = json.dumps({**vars(context), "tables": context.tables})
    return (
        f'{{"version": {VERSION},\n"made_for": {made_for},\n"tables": {{\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def _table_entry(module: str, parameter: ParameterSharding) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "module": module,
        "sharding_type": parameter.sharding_type,
        "compute_kernel": parameter.compute_kernel,
    }
    if parameter.cache_params is not None:
        entry["cache_load_factor"] = parameter.cache_params.load_factor
    entry["shards"] = [
        [rank, *shard.shard_offsets, *shard.shard_sizes]
        for rank, shard in zip(parameter.ranks, parameter.sharding_spec.shards, strict=True)
    ]
    return entry


def read_plan(path: Path) -> dict[str, Any]:
    """Reads a plan file: a tree of the right types, whose sizes need not fit one another.

    Raises:
        ValueError: there is no such file, it is no plan of this version, or it is damaged.
    """
    try:
        tree = parse_json(read_document(path, follow_link=True))
    except OSError as error:
        raise ValueError(
            f"no plan at '{path}' ({error.strerror}); mail-torchrec plan writes one, and a run "
            "leaves plan.json"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no plan: {error}") from error
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION or not {"made_for", "tables"} <= tree.keys():
        raise ValueError(
            f"{path} should be a plan of version {VERSION}, received version {version}; make it "
            "anew: mail-torchrec plan"
        )
    try:
        _SavedPlan.model_validate(tree)
    except ValidationError as error:
        raise ValueError(
            f"{path} is damaged ({first_fault(error)}); make it anew with mail-torchrec plan"
        ) from error
    return dict(tree)


def plan_context(tree: dict[str, Any]) -> PlanContext:
    """Returns the context that a plan was made for, from the content of its file."""
    given = tree["made_for"]
    sizes = {name: (rows, columns) for name, (rows, columns) in given["tables"].items()}
    return PlanContext(**given | {"tables": sizes})


def load_plan(path: Path, job: PlanContext) -> ShardingPlan:
    """Loads the plan of a file for a job with the same context.

    Args:
        path: the plan file.
        job: context of the job that will use the plan.

    Raises:
        ValueError: the plan was made for another job (every difference is named), or the file is
            damaged.
    """
    tree = read_plan(path)
    if differences := plan_context(tree).differences(job):
        raise ValueError(
            f"{path} was made for {'; '.join(differences)}; make it anew with mail-torchrec "
            "plan, or train without --plan"
        )
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, entry in tree["tables"].items():
        module = modules.setdefault(entry["module"], EmbeddingModuleShardingPlan())
        module[collection_key(name)] = _parameter_sharding(path, name, entry, job)
    if missing := sorted(job.tables.keys() - tree["tables"].keys()):
        raise ValueError(
            f"{path} is damaged: it does not place {missing}; make it anew with mail-torchrec plan"
        )
    return ShardingPlan(dict(modules))


def _parameter_sharding(
    path: Path, name: str, entry: dict[str, Any], job: PlanContext
) -> ParameterSharding:
    shards = [
        PlacedShard(rank, [row, column], [rows, columns])
        for rank, row, column, rows, columns in entry["shards"]
    ]
    _check_cover(path, name, shards, job)
    return build_parameter_sharding(
        entry["sharding_type"],
        entry["compute_kernel"],
        shards,
        device=job.device,
        local_world_size=job.local_world_size,
        cache_load_factor=entry.get("cache_load_factor"),
    )


def _check_cover(path: Path, name: str, shards: list[PlacedShard], job: PlanContext) -> None:
    """Raises ValueError if a shard's rank does not exist or the areas do not add up."""
    rows, columns = job.tables[name]
    area = sum(shard.sizes[0] * shard.sizes[1] for shard in shards)
    if area != rows * columns or any(not 0 <= shard.rank < job.world_size for shard in shards):
        raise ValueError(
            f"{path} is damaged: its shards of '{name}' do not cover {rows:,} x {columns} on "
            f"{job.world_size} ranks"
        )
