"""Exchange of the towers' gradients in bfloat16, as a hook of DistributedDataParallel."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def exchange_in_bfloat16(model: nn.Module) -> None:
    """Lets each DistributedDataParallel of a model average its gradients in bfloat16."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(module.process_group, _average_in_bfloat16)


def _average_in_bfloat16(
    group: dist.ProcessGroup, bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    """Averages the gradients of a bucket over the ranks, rounded to bfloat16 on their way.

    PyTorch's hook does the same; DistributedDataParallel refuses it by its name without NCCL.
    """
    buffer = bucket.buffer()
    rounded = (buffer / group.size()).bfloat16()

    def decode(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        return buffer.copy_(future.value()[0])

    work = dist.all_reduce(rounded, group=group, async_op=True)
    return work.get_future().then(decode)
