"""Collectives over ranks; every function is the identity in a job of one process."""

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

WAITING_FOR_RANK_0 = "waiting for rank 0"
"""Name of the span in which ranks wait for what rank 0 makes."""
WAITING_FOR_RANKS = "waiting for the other ranks"
"""Name of the span in which ranks that are done wait for work of the others."""
# Ranks may read all of the training data while others wait for their results.
_WORK_TIMEOUT = timedelta(hours=24)
# By the process group of the job, which a process of several jobs makes anew.
_host_groups: dict[Any, dist.ProcessGroup] = {}
_single_rank: ContextVar[bool] = ContextVar("single_rank", default=False)


@contextmanager
def single_rank() -> Iterator[None]:
    """Makes the block run as if this process were the only rank, whatever the process group is."""
    token = _single_rank.set(True)
    try:
        yield
    finally:
        _single_rank.reset(token)


def world_size() -> int:
    """Returns the number of ranks, 1 without a process group."""
    if _single_rank.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's rank, 0 without a process group."""
    if _single_rank.get():
        return 0
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sums a tensor over ranks; the gradient is the sum of the ranks' gradients.

    Args:
        value: any shape ``[...]``, the same on every rank.
    """
    return value if world_size() == 1 else cast(Tensor, _SumOverRanks.apply(value))


class _SumOverRanks(torch.autograd.Function):
    """All-reduce in both directions: every rank's loss depends on every rank's value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _all_reduced(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(value: Tensor) -> Tensor:
    summed = value.clone()
    if torch.compiler.is_compiling():  # a span would break the graph
        dist.all_reduce(summed)
    else:
        with span("communication"):
            dist.all_reduce(summed)
    return summed


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates all ranks' rows on every rank, in rank order and without gradient.

    Every rank must call it, with tensors of one type and trailing shape on the backend's device.

    Args:
        rows: ``[rows, ...]``; the number of rows may differ between ranks and be zero.

    Returns:
        ``[rows of all ranks, ...]``.
    """
    if world_size() == 1:
        return rows
    if rows.dtype is torch.bool:  # not every backend moves booleans
        return gather_rows(rows.to(torch.uint8)).bool()
    with span("communication"):
        counts = counts_of_ranks(rows.shape[0], rows.device)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # all_gather: equal shapes
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_rows_with_gradient(rows: Tensor) -> tuple[Tensor, int]:
    """Concatenates all ranks' rows as :func:`gather_rows` does, and keeps the gradient.

    The gradient of own rows is the sum of what the ranks' losses have for them. Every rank must
    call it, and backward too, which sums over ranks.

    Args:
        rows: ``[rows, ...]``; the number of rows may differ between ranks and be zero.

    Returns:
        ``[rows of all ranks, ...]``, and the place of the first own row.
    """
    if world_size() == 1:
        return rows, 0
    counts = counts_of_ranks(rows.shape[0], rows.device)
    first, total = sum(counts[: rank()]), sum(counts)
    before = rows.new_zeros(first, *rows.shape[1:])
    behind = rows.new_zeros(total - first - rows.shape[0], *rows.shape[1:])
    return sum_over_ranks(torch.cat([before, rows, behind])), first


def counts_of_ranks(number: int, device: torch.device) -> list[int]:
    """Returns the number of each rank; hosts tell each other, so that none waits for a GPU.

    Args:
        number: this rank's, known to the host.
        device: that the ranks compute on.
    """
    if world_size() == 1:
        return [number]
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = number
    dist.all_reduce(counts, group=None if device.type == "cpu" else _host_group())
    numbers: list[int] = counts.tolist()
    return numbers


def _host_group() -> dist.ProcessGroup:
    """Returns a group for tensors in host memory; every rank has to be the first time here."""
    job = dist.group.WORLD
    if job not in _host_groups:
        _host_groups.clear()
        _host_groups[job] = dist.new_group(backend="gloo")
    return _host_groups[job]


@torch.no_grad()
def exchange_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Sends rows to the ranks that they are for, and returns those that the ranks sent here.

    Every rank must call it, with tensors of one type and trailing shape. They may lie in host
    memory whatever the backend.

    Args:
        rows: ``[rows, ...]``, those for rank 0 first.
        counts: number of rows for each rank.

    Returns:
        ``[rows from all ranks, ...]``, in rank order, on the device of ``rows``.
    """
    if world_size() == 1:
        return rows
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    with span("communication"):
        sent = torch.tensor(counts, dtype=torch.int64, device=device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        shares = received.tolist()
        output = rows.new_empty(sum(shares), *rows.shape[1:], device=device)
        dist.all_to_all_single(output, rows.to(device).contiguous(), shares, counts)
    return output.to(rows.device)


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Collects a picklable object of every rank on every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    with span("communication"):
        dist.all_gather_object(gathered, value, group=group)
    return gathered


def broadcast_from_rank_0(make: Callable[[], T]) -> T:
    """Calls a function on rank 0 and returns its result on every rank.

    The other ranks wait as long as it works. Should it die, their connection to it breaks; should
    it stand still, the watchdog ends them.

    Raises:
        Exception: ``make`` raised it; on the other ranks a copy, or a RuntimeError with its text
            where it cannot be copied.
    """
    if world_size() == 1:
        return make()
    # Made before rank 0 begins its work, so that all ranks are connected when it does.
    with span(WAITING_FOR_RANK_0, patient=True):
        group = dist.new_group(backend="gloo", timeout=_WORK_TIMEOUT)
    error: Exception | None = None
    result: list[Any] = [None, None]
    if rank() == 0:
        try:
            with span("as rank 0", patient=True):
                result[0] = make()
        except Exception as raised:
            error, result[1] = raised, _picklable(raised)
    with span(WAITING_FOR_RANK_0, patient=True):
        dist.broadcast_object_list(result, src=0, group=group)
    dist.destroy_process_group(group)
    if error is not None:
        raise error
    if result[1] is not None:
        raise result[1]
    return cast(T, result[0])


def results_of_ranks(make: Callable[[], T]) -> list[T]:
    """Calls a function on every rank at once, and returns all results on every rank, in rank order.

    Ranks that are done wait for the others as long as they work, as in
    :func:`broadcast_from_rank_0`.

    Raises:
        Exception: the error of the first rank on which ``make`` raised one; on the other ranks a
            copy, or a RuntimeError with its text where it cannot be copied.
    """
    if world_size() == 1:
        return [make()]
    with span(WAITING_FOR_RANKS, patient=True):
        group = dist.new_group(backend="gloo", timeout=_WORK_TIMEOUT)
    error: Exception | None = None
    outcome: list[Any] = [None, None]
    try:
        with span(f"as rank {rank()}", patient=True):
            outcome[0] = make()
    except Exception as raised:
        error, outcome[1] = raised, _picklable(raised)
    outcomes: list[Any] = [None] * world_size()
    with span(WAITING_FOR_RANKS, patient=True):
        dist.all_gather_object(outcomes, outcome, group=group)
    dist.destroy_process_group(group)
    failed = next((number for number, found in enumerate(outcomes) if found[1] is not None), None)
    if failed is not None:
        raise error if failed == rank() and error is not None else outcomes[failed][1]
    return [found[0] for found in outcomes]


def _picklable(error: Exception) -> Exception:
    """Returns the error, or a RuntimeError with its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # the constructor of its class may take anything, and fail on it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
