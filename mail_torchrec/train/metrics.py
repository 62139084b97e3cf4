"""What an evaluation reports: AUC and GAUC of new, old and all rows, equal whatever the number of ranks."""

import math
from typing import Any, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mail_torchrec.auc import auc, gauc

__all__ = ["Figures", "auc", "gather", "gauc", "report"]


class Figures(TypedDict):
    """The figures of one part of the rows, ready for JSON."""

    auc: float | None
    """None where one class is missing."""
    gauc: float | None
    """None where no user has both classes."""
    rows: int
    users: int


def report(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any], is_new: NDArray[Any]) -> dict[str, Figures]:
    """The figures of new users' rows, old users' rows and all rows.

    Args:
        scores: any monotone function of the predicted probability, ``[rows]``.
        labels: 0 or 1, ``[rows]``.
        users: whose row it is: integers or strings, ``[rows]``.
        is_new: true on the rows of new users, ``[rows]``.

    Returns:
        ``{"new": {"auc", "gauc", "rows", "users"}, "old": ..., "all": ...}``; undefined figures are None.

    Raises:
        ValueError: the shapes differ, a score is nan, or a label is neither 0 nor 1.
    """
    is_new = is_new.astype(np.bool_)
    if is_new.shape != scores.shape:
        raise ValueError(f"report: is_new should have one entry a row, received shape {is_new.shape} for {len(scores)} scores")
    parts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    return {name: _figures(scores[rows], labels[rows], users[rows]) for name, rows in parts.items()}


def _figures(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> Figures:
    return Figures(
        auc=_or_none(auc(scores, labels)),
        gauc=_or_none(gauc(scores, labels, users)),
        rows=len(scores),
        users=len(np.unique(users)),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def gather(tensor: Tensor) -> Tensor:
    """All ranks' rows, in the order of the ranks, on every rank; the tensor itself where there is one process.

    Every rank must call it, with tensors of one type and one trailing shape; the number of rows may differ and be zero.

    Args:
        tensor: this rank's rows, ``[rows of this rank, ...]``.

    Returns:
        ``[rows of all ranks, ...]``, on the device of ``tensor``.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    if tensor.dtype is torch.bool:  # not every backend moves booleans
        return gather(tensor.to(torch.uint8)).bool()
    local = tensor.detach().to(_wire_device(tensor)).contiguous()
    size = torch.tensor([len(local)], dtype=torch.int64, device=local.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    counts = [int(count) for count in sizes]
    padded = local.new_zeros(max(counts), *local.shape[1:])  # all_gather wants equal shapes
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)


def _wire_device(tensor: Tensor) -> torch.device:
    """Where the backend wants its tensors: NCCL only moves CUDA tensors, gloo is told to move those of the CPU."""
    backend = dist.get_backend()
    if backend == "nccl" and not tensor.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else tensor.device
