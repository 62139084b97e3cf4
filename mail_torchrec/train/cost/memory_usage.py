"""Measured memory of a run, rank by rank, to be compared with the planner's estimate."""

import resource
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.distributed.collectives import gather_objects
from mail_torchrec.optim.groups import OptimizerGroups


def memory_usage(
    model: nn.Module, optimizer: OptimizerGroups, device: torch.device
) -> dict[str, Any]:
    """Measures bytes by purpose, a list over ranks each; every rank calls it.

    ``peak`` is the largest amount that CUDA's allocator gave out, on a CPU the process's largest
    resident memory.
    """
    fused_states = (
        value
        for group in optimizer
        if group.is_fused
        for state in group.state.values()
        for value in state.values()
    )
    own = {
        "table_weights": _local_bytes(model.state_dict().values()),
        "optimizer_state": _local_bytes(fused_states),
        "peak": _peak_bytes(device),
    }
    ranks = gather_objects(own)
    usage: dict[str, Any] = {name: [of_rank[name] for of_rank in ranks] for name in own}
    return usage | {"device": device.type}


def _local_bytes(values: Iterable[Any]) -> int:
    """Sums the bytes of this rank's shards of sharded tensors."""
    shards = (
        shard.tensor
        for value in values
        if isinstance(value, ShardedTensor)
        for shard in value.local_shards()
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in shards)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
