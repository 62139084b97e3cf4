"""Clipping of a group's gradient by its norm."""

from collections.abc import Iterable

from torch import Tensor, nn


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a norm over all of them together, where theirs is greater.

    Dense gradients are equal on all ranks when DistributedDataParallel has averaged them, so this
    is the norm of the global batch's gradient, and no rank has to ask another. On a GPU the host
    does not wait for the norm.

    Args:
        parameters: of any shapes [...]; those without a gradient do not count.
        max_norm: the greatest norm.

    Returns:
        The norm before, [].
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)
