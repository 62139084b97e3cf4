"""Marks the parts of the towers in a profile, by the names of their modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tools.benchmark.profile.trace import MODULE

_TOWERS = ("zero_shot", "ranking", "dmr")
"""Names of towers within a model; ``dmr`` is that of the direct reference."""


@contextmanager
def marked_modules(model: nn.Module) -> Iterator[None]:
    """Marks the forward pass of each part of the towers while the block runs.

    Args:
        model: of this project or the direct reference, wrapped or not.
    """
    ranges: list[Any] = []
    hooks = [hook for label, part in _parts(model) for hook in _mark(label, part, ranges)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields label and module of each part: children of the towers, entries of their lists."""
    for name, tower in model.named_modules():
        if name.rpartition(".")[2] not in _TOWERS:
            continue
        for child_name, child in tower.named_children():
            if isinstance(child, nn.ModuleList):
                yield from ((f"{child_name}.{index}", part) for index, part in enumerate(child))
            else:
                yield child_name, child


def _mark(label: str, part: nn.Module, ranges: list[Any]) -> list[Any]:
    def enter(*_: Any) -> None:
        # Virtual behaviours are constants, made without a gradient by modules that losses train.
        text = label if torch.is_grad_enabled() else f"{label}, virtual behaviours"
        opened = torch.profiler.record_function(MODULE + text)
        opened.__enter__()
        ranges.append(opened)

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    return [
        part.register_forward_pre_hook(enter),
        part.register_forward_hook(leave, always_call=True),
    ]
