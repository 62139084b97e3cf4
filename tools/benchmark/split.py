"""Where a step's time goes: functions of the model and the pipeline wrapped by a watch that knows which of them is innermost.

The backward pass is one part: its table updates are FBGEMM's, fused into it, and so is the
averaging of gradients over ranks. On a GPU each change of part waits for it, so the parts add up
but the step is longer than without the watch.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from tools.benchmark.interleaved import synchronise
from tools.benchmark.sides import DirectReference, Side, Trainer

PARTS = (
    "input wait",
    "lookup",
    "zero-shot",
    "ranking",
    "backward",
    "optimizer",
    "communication",
    "other",
)
_COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_to_all_single",
    "broadcast",
)


class Watch:
    """Seconds by part, each moment counted for the innermost part alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside, self._since = ["other"], time.perf_counter()

    def enter(self, part: str) -> None:
        """From here on it is this part."""
        self.change()
        self._inside.append(part)

    def leave(self) -> None:
        """From here on it is what it was before."""
        self.change()
        self._inside.pop()

    def start(self) -> None:
        """Begins at 0."""
        self.change()
        self.seconds.clear()

    def change(self) -> None:
        """Counts the time so far."""
        synchronise()
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def wrapped(self, owner: Any, name: str, part: str) -> Any:
        """A patch of a function that counts its calls for a part."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return patch.object(owner, name, timed)

    @contextmanager
    def hooked(self, module: nn.Module, part: str) -> Iterator[None]:
        """Counts a module's calls for a part, by hooks: the pipeline puts a function of its own, with a state, in place of ``forward``."""
        hooks = [
            module.register_forward_pre_hook(lambda *_: self.enter(part)),
            module.register_forward_hook(lambda *_: self.leave()),
        ]
        yield
        for hook in hooks:
            hook.remove()


def split(side: Side, steps: int) -> dict[str, float]:
    """Seconds a step by part; the side has to have trained a step before."""
    watch = Watch()
    with ExitStack() as patches:
        for owner, name, part in _functions(side):
            patches.enter_context(watch.wrapped(owner, name, part))
        for tables in _tables(side):
            patches.enter_context(watch.hooked(tables, "lookup"))
        side.step()
        watch.start()
        for _ in range(steps):
            side.step()
        watch.change()
    return {part: watch.seconds[part] / steps for part in PARTS}


def _tables(side: Side) -> list[nn.Module]:
    """What is looked up in."""
    if isinstance(side, DirectReference):
        return [*side.model.tables.values(), side.model.output_table]
    model = _model(side)
    return [model.pooled_tables, model.unpooled_tables]


def _model(side: Side) -> Any:
    """The trainer's model without its wrappers."""
    assert isinstance(side, Trainer)
    return getattr(side.assembled.model, "module", side.assembled.model)


def _functions(side: Side) -> list[tuple[Any, str, str]]:
    """Owner, name and part of everything that is watched."""
    assert isinstance(side, (Trainer, DirectReference))
    found = [(torch.Tensor, "backward", "backward"), (side.input, "take", "input wait")]
    found += [(dist, name, "communication") for name in _COLLECTIVES]
    return found + (_of_reference(side) if isinstance(side, DirectReference) else _of_trainer(side))


def _of_reference(side: DirectReference) -> list[tuple[Any, str, str]]:
    model = side.model
    found = [(model.dmr, "forward", "ranking"), (model, "match_loss", "ranking")]
    if model.zero_shot is not None:
        found.append((model.zero_shot, "forward", "zero-shot"))
    return found + [(optimizer, "step", "optimizer") for optimizer in side.optimizers]


def _of_trainer(side: Trainer) -> list[tuple[Any, str, str]]:
    assembled = side.assembled
    model = _model(side)
    found = [(assembled.optimizer, "step", "optimizer")]
    if assembled.plan is not None:
        found += [
            (assembled.pipeline, name, "communication")
            for name in ("start_sparse_data_dist", "wait_sparse_data_dist")
        ]
    if getattr(side.config.train, "compile", False):
        return [
            *found,
            (model.towers, "forward", "ranking"),
        ]  # compiled code has no inside; both towers count as ranking
    found += [(model.towers.ranking, "forward", "ranking")]
    if model.towers.zero_shot is not None:
        found += [(model.towers.zero_shot, name, "zero-shot") for name in ("losses", "virtual")]
    return found
