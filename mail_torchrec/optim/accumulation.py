"""Accumulation of dense gradients over several steps.

``DistributedDataParallel`` averages gradients over ranks in the last of them alone; until then each
rank holds the sum of its own. The tables of FBGEMM cannot wait: their update is a part of each
backward pass.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def without_gradient_exchange(model: nn.Module) -> Iterator[None]:
    """Keeps gradients on their rank; forward and backward pass have to be within."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], num_steps: int) -> None:
    """Divides summed gradients by the number of steps.

    Args:
        parameters: of any shapes [...].
        num_steps: steps that the gradients are summed over.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(num_steps)
