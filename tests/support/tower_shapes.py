"""Shapes that the towers see from step to step."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Shapes = dict[str, set[tuple[tuple[int, ...], ...]]]
"""Module's name -> distinct shapes of its inputs."""


@contextmanager
def recorded_shapes(model: nn.Module) -> Iterator[Shapes]:
    """Records the shapes of the tensors that go into each dense layer of a model.

    Args:
        model: whose layers count, those of the tables left out.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if name.startswith("towers.") and isinstance(module, nn.Linear | nn.BatchNorm1d)
    }
    found: Shapes = defaultdict(set)

    def record(module: nn.Module, inputs: Any) -> None:
        if module in names:
            shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
            found[names[module]].add(shapes)

    handle = register_module_forward_pre_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def compiled_graphs() -> int:
    """Returns how many graphs torch.compile has made since ``torch._dynamo.reset``."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
