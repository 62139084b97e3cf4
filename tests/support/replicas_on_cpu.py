"""Permission, for tests alone, to replicate sharded tables on CPU, over gloo.

TorchRec's ``DMPCollection`` asserts that there is a GPU, names CUDA devices in plans, and averages
by an operation that gloo lacks; nothing else of it needs one.
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import model_parallel

from mail_torchrec.embeddings.communication import replicas

_CUDA_PLACE = 'f"rank:{shard_rank}/{self._device.type}:{shard_rank % get_local_size()}"'
_CPU_PLACE = 'f"rank:{shard_rank}/cpu"'


def allow_replicas_on_cpu() -> None:
    """For this process, which should be a fork that ends with the test."""
    source = inspect.getsource(model_parallel.DMPCollection)
    assert source.count(_CUDA_PLACE) == 1
    names = dict(vars(model_parallel))
    code = compile(source.replace(_CUDA_PLACE, _CPU_PLACE), "dmp_collection", "exec", optimize=1)
    exec(code, names)

    class OnCpu(names["DMPCollection"]):  # type: ignore[misc]
        def _allreduce_tensors(
            self, where: Any, tensors: dict[torch.dtype, list[torch.Tensor]], *_: Any, **__: Any
        ) -> None:
            group = getattr(where, "replica_pg", where)  # the group itself in TorchRec 1.6
            for found in tensors.values():
                for tensor in found:
                    dist.all_reduce(tensor, group=group)
                    tensor.div_(group.size())

    replicas.ReplicatedModelParallel.__bases__ = (OnCpu,)
    replicas._DEVICES = ("cuda", "cpu")
