"""Replicas of the sharded tables, TorchRec's 2D parallelism: groups of ranks that each hold all.

A group shards the tables over its own ranks and exchanges vectors within itself. Behind each step
the groups average their copies of weights and optimizer state.
"""

import copy
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DMPCollection
from torchrec.distributed.types import ShardingPlan

from mail_torchrec.utils.spans import span

# Devices that TorchRec's DMPCollection takes.
_DEVICES = ("cuda",)


class ShardingGroup(NamedTuple):
    """Ranks that share one copy of the tables: all of a job, or one of its replicas."""

    world_size: int
    """Ranks of the group."""
    local_world_size: int
    """Ranks of the group on one host."""


def sharding_group(
    replicas: int | None, world_size: int, local_world_size: int, device: str
) -> ShardingGroup:
    """Computes the size of each group; TorchRec gives every ``replicas``-th rank to one.

    So copies of one row lie on neighbouring ranks, which average them over their host's links.

    Args:
        replicas: setting ``sharding.replicas``.
        world_size: ranks of the job.
        local_world_size: ranks of one host.
        device: ``cuda`` or ``cpu``.

    Raises:
        ValueError: the tables lie on CPU, or the ranks of the job, or of a host, do not divide into
            so many groups.
    """
    if replicas is None:
        return ShardingGroup(world_size, local_world_size)
    if device not in _DEVICES:
        raise ValueError(
            f"sharding.replicas={replicas}: TorchRec's 2D parallelism exists on CUDA alone, and "
            "the tables lie on CPU; leave it out"
        )
    if world_size % replicas:
        raise ValueError(
            f"sharding.replicas should divide the ranks of the job, {world_size}, received "
            f"{replicas}; change one of the two"
        )
    local_world_size = min(local_world_size, world_size)
    if local_world_size % replicas and replicas % local_world_size:
        raise ValueError(
            f"sharding.replicas should divide the ranks of a host, {local_world_size}, or be a "
            f"multiple of them, received {replicas}; change one of the two"
        )
    return ShardingGroup(world_size // replicas, max(1, local_world_size // replicas))


class ReplicatedModelParallel(DMPCollection):
    """Model whose tables are sharded within groups of ranks, and averaged over the groups.

    Its tables are of the type ``ShardedTensor``, as without replicas, so that checkpoints, initial
    weights and touched rows have one form; the copies of a shard have one place in the table, of
    which a checkpoint writes one.

    Args:
        module: with its tables on the meta device.
        plan: for the ranks of one group, numbered from 0.
        replicas: number of groups.
        options: further ones of ``DMPCollection``.
    """

    def __init__(
        self, module: nn.Module, plan: ShardingPlan, replicas: int, **options: Any
    ) -> None:
        group = dist.group.WORLD
        assert group is not None
        super().__init__(
            module,
            # TorchRec writes the ranks of the group into the plan.
            plan=copy.deepcopy(plan),
            world_size=group.size(),
            sharding_group_size=group.size() // replicas,
            global_pg=group,
            **options,
        )

    def _shard_modules_impl(self, *args: Any, **options: Any) -> nn.Module:
        self._env.output_dtensor = False
        return super()._shard_modules_impl(*args, **options)

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same shards."""
        return self._default_ctx.replica_pg


def average_replicas(model: nn.Module) -> None:
    """Averages the tables and their optimizer state over replicas, where there are any."""
    if isinstance(model, ReplicatedModelParallel):
        with span("communication"):
            model.sync()


def replica_group(model: nn.Module) -> dist.ProcessGroup | None:
    """Returns the ranks that hold the same shards as this one; None without replicas."""
    return model.replica_group if isinstance(model, ReplicatedModelParallel) else None
