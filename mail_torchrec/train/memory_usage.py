"""What a run took: the memory of tables, of their optimizer and of everything, rank by rank, to be compared with an estimate."""

import resource
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor

from mail_torchrec.distributed.collectives import world_size
from mail_torchrec.train.assembly import Assembled


def usage(assembled: Assembled) -> dict[str, Any]:
    """Bytes by purpose, a list of all ranks each; every rank calls it.

    ``peak`` is what CUDA's allocator gave out at most, on CPU the process's largest resident
    memory.
    """
    fused = getattr(assembled.model, "fused_optimizer", None)
    states = (
        []
        if fused is None
        else [value for state in fused.state_dict()["state"].values() for value in state.values()]
    )
    mine = {
        "table_weights": _local_bytes(assembled.model.state_dict().values()),
        "optimizer_state": _local_bytes(states),
        "peak": _peak(assembled.device),
    }
    ranks: list[Any] = [mine]
    if world_size() > 1:
        ranks = [None] * world_size()
        dist.all_gather_object(ranks, mine)
    return {name: [of_rank[name] for of_rank in ranks] for name in mine} | {
        "device": assembled.device.type
    }


def _local_bytes(values: Iterable[Any]) -> int:
    """Bytes of this rank's shards."""
    shards = (
        shard.tensor
        for value in values
        if isinstance(value, ShardedTensor)
        for shard in value.local_shards()
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in shards)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
