"""``plan.json``: where each part of each table lies, and what the plan was made for.

A run leaves one, ``mail-torchrec plan`` writes one, ``mail-torchrec train --plan`` takes one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from mail_torchrec.embeddings.planner import parameter_sharding

VERSION = 1


@dataclass(frozen=True)
class MadeFor:
    """What a plan depends on; it fits a job that has the same."""

    world_size: int
    ranks_a_host: int
    device: str
    """cuda or cpu."""
    optimizer: str
    """Of the tables: its state takes memory too."""
    tables: dict[str, tuple[int, int]]
    """Table -> stored rows and columns."""

    def differences(self, job: "MadeFor") -> list[str]:
        """What another job has different, in words."""
        found = []
        for what, mine, its in (
            ("world size {0}, this job has {1} ranks", self.world_size, job.world_size),
            ("{0} ranks a host, this job has {1}", self.ranks_a_host, job.ranks_a_host),
            ("{0}, this job runs on {1}", self.device, job.device),
            ("train.tables.name={0}, this job has {1}", self.optimizer, job.optimizer),
        ):
            if mine != its:
                found.append(what.format(mine, its))
        for name in sorted({*self.tables, *job.tables}):
            mine_size, its_size = self.tables.get(name), job.tables.get(name)
            if its_size is None:
                found.append(f"a table '{name}', which this job has not")
            elif mine_size is None:
                found.append(f"no table '{name}', which this job has")
            elif mine_size != its_size:
                found.append(
                    f"'{name}' of {mine_size[0]:,} x {mine_size[1]}, here it has {its_size[0]:,} "
                    f"x {its_size[1]}"
                )
        return found


def plan_text(plan: ShardingPlan, made_for: MadeFor) -> str:
    """The file's text, one line a table; a shard is ``[rank, first row, first column, rows, columns]``."""
    lines = []
    for module, parameters in plan.plan.items():
        for name, parameter in parameters.items():
            shards = [
                [rank, *shard.shard_offsets, *shard.shard_sizes]
                for rank, shard in zip(parameter.ranks, parameter.sharding_spec.shards, strict=True)
            ]
            table = {
                "module": module,
                "sharding_type": parameter.sharding_type,
                "compute_kernel": parameter.compute_kernel,
            }
            if parameter.cache_params is not None:
                table["cache_load_factor"] = parameter.cache_params.load_factor
            lines.append(f"{json.dumps(name)}: {json.dumps(table | {'shards': shards})}")
    made = json.dumps({**vars(made_for), "tables": made_for.tables})
    return (
        f'{{"version": {VERSION},\n"made_for": {made},\n"tables": {{\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def read_plan(path: Path) -> dict[str, Any]:
    """A plan file as it stands.

    Raises:
        ValueError: there is none, or it is no plan of this version.
    """
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"no plan at '{path}' ({error.strerror}); mail-torchrec plan writes one, and a run "
            "leaves plan.json"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no plan: {error}") from error
    if (
        not isinstance(tree, dict)
        or tree.get("version") != VERSION
        or not {"made_for", "tables"} <= tree.keys()
    ):
        version = tree.get("version") if isinstance(tree, dict) else None
        raise ValueError(
            f"{path} should be a plan of version {VERSION}, received version {version}; make it "
            "anew: mail-torchrec plan"
        )
    return tree


def made_for(tree: dict[str, Any]) -> MadeFor:
    """What a plan that was read was made for."""
    given = tree["made_for"]
    return MadeFor(
        **given
        | {"tables": {name: (rows, columns) for name, (rows, columns) in given["tables"].items()}}
    )


def load_plan(path: Path, job: MadeFor, ssd_directory: str | None) -> ShardingPlan:
    """The plan of a file, for a job that is what it was made for.

    Raises:
        ValueError: it was made for another, or is damaged; every difference is named.
    """
    tree = read_plan(path)
    try:
        differences = made_for(tree).differences(job)
        if differences:
            raise ValueError(
                f"{path} was made for {'; '.join(differences)}; make it anew with mail-torchrec "
                "plan, or train without --plan"
            )
        modules: dict[str, EmbeddingModuleShardingPlan] = {}
        for name, table in tree["tables"].items():
            shards = [
                (rank, [row, column], [rows, columns])
                for rank, row, column, rows, columns in table["shards"]
            ]
            _check_cover(path, name, shards, job)
            module = modules.setdefault(table["module"], EmbeddingModuleShardingPlan())
            module[name] = parameter_sharding(
                table["sharding_type"],
                table["compute_kernel"],
                shards,
                job.device,
                job.ranks_a_host,
                table.get("cache_load_factor"),
                ssd_directory,
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); make it anew with "
            "mail-torchrec plan"
        ) from error
    if missing := sorted(job.tables.keys() - tree["tables"].keys()):
        raise ValueError(
            f"{path} is damaged: it does not place {missing}; make it anew with mail-torchrec plan"
        )
    return ShardingPlan(dict(modules))


def _check_cover(
    path: Path, name: str, shards: list[tuple[int, list[int], list[int]]], job: MadeFor
) -> None:
    """Raises ValueError where the shards' ranks do not exist, or their areas do not add up to the table's."""
    rows, columns = job.tables[name]
    area = sum(sizes[0] * sizes[1] for _, _, sizes in shards)
    if area != rows * columns or any(not 0 <= rank < job.world_size for rank, _, _ in shards):
        raise ValueError(
            f"{path} is damaged: its shards of '{name}' do not cover {rows:,} x {columns} on "
            f"{job.world_size} ranks"
        )
