"""The ranking towers as constants, by which generators learn: no gradient reaches their parameters.

Shape letters as in ``towers/inputs.py``.
"""

from collections.abc import Callable
from itertools import chain
from typing import TypeVar

from torch import nn
from torch.func import functional_call

from mail_torchrec.model.dense_modules import DenseModules

Result = TypeVar("Result")
_RANKING_MODULES = ("ranking", "multi_task", "cold_ranking", "cold_multi_task", "projections")


def by_constant_towers(dense: DenseModules, function: Callable[[], Result]) -> Result:
    """Calls a function while ranking towers, heads and projections are constants.

    They are in evaluation mode for the time, so that each row is scored by itself.

    Args:
        dense: the towers.
        function: ranks rows by them; may compute gradients of what else it reads.
    """
    modules = {
        name: module for name in _RANKING_MODULES if (module := getattr(dense, name)) is not None
    }
    state = {
        f"dense.{prefix}.{name}": value.detach()  # WALL: this loss teaches no ranking tower.
        for prefix, module in modules.items()
        for name, value in chain(module.named_parameters(), module.named_buffers())
    }
    were_training = {name: module.training for name, module in modules.items()}
    try:
        for module in modules.values():
            module.eval()
        result: Result = functional_call(_Call(dense), state, (function,))
    finally:
        for name, module in modules.items():
            module.train(were_training[name])
    return result


class _Call(nn.Module):
    """Calls a function in a module's forward, where functional_call exchanges parameters."""

    def __init__(self, dense: DenseModules) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, function: Callable[[], Result]) -> Result:
        return function()
