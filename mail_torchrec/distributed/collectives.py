"""Sums, gathers and answers over ranks; the identity in one process."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.utils.spans import span

T = TypeVar("T")

_PATIENCE = timedelta(hours=24)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process is its own world: for what one rank does by itself while a process group stands."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def world_size() -> int:
    """Ranks of the process group, 1 where there is none."""
    if _alone.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 where there is no process group."""
    if _alone.get():
        return 0
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks; its gradient is the sum of the ranks' gradients."""
    return value if world_size() == 1 else cast(Tensor, _SumOverRanks.apply(value))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> Tensor:  # every rank's loss depends on every rank's value
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows on every rank, in rank order and without gradient.

    Every rank must call it, with tensors of one type and trailing shape on the backend's device;
    the number of rows may differ and be zero.
    """
    if world_size() == 1:
        return rows
    if rows.dtype is torch.bool:  # not every backend moves booleans
        return gather_rows(rows.to(torch.uint8)).bool()
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = rows.shape[0]
    dist.all_reduce(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])  # all_gather wants equal shapes
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def from_rank_0(make: Callable[[], T]) -> T:
    """What ``make()`` returns on rank 0, on every rank; an error there is raised on every rank.

    The others wait as long as it takes: rank 0 may be reading all of the training data. Should it
    die, their connection to it breaks.

    Raises:
        Exception: ``make`` raised it; on the other ranks a copy, or a RuntimeError with its text
            where it cannot be copied.
    """
    if world_size() == 1:
        return make()
    # Before rank 0 begins, so that all are connected when it does.
    patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    error: Exception | None = None
    result: list[Any] = [None, None]
    if rank() == 0:
        try:
            with span("as rank 0", patient=True):
                result[0] = make()
        except Exception as raised:
            error, result[1] = raised, _copyable(raised)
    with span("waiting for rank 0", patient=True):
        dist.broadcast_object_list(result, src=0, group=patient)
    dist.destroy_process_group(patient)
    if error is not None:
        raise error
    if result[1] is not None:
        raise result[1]
    return cast(T, result[0])


def _copyable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class may have any constructor
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
