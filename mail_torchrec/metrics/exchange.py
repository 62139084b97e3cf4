"""Rows of all ranks dealt anew by score or by key, so that no rank holds those of all.

Shapes: ``R`` rows, ``P`` partitions of the rows into groups.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mail_torchrec.distributed.collectives import exchange_rows, gather_objects, world_size

_SAMPLES = 1024
"""Scores of each rank that the borders between score ranges are chosen from."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def exchange_by_score(rows_R: NDArray[Any]) -> NDArray[Any]:
    """Deals rows by ranges of the score: each rank gets one, lower ranks lower scores, [R].

    Rows of one score come to one rank. Ranges have about equal numbers of rows, but for scores
    that very many rows share.

    Args:
        rows_R: structured array with the field ``score``, rising.
    """
    if world_size() == 1:
        return rows_R
    scores_R = rows_R["score"]
    places = np.linspace(0, len(rows_R) - 1, min(_SAMPLES, len(rows_R))).astype(np.int64)
    sampled = gather_objects((scores_R[places], len(rows_R)))
    samples = np.concatenate([scores for scores, _ in sampled])
    shares = np.concatenate([np.full(len(s), num / max(len(s), 1)) for s, num in sampled])
    order = np.argsort(samples, kind="stable")
    borders = np.arange(1, world_size()) / world_size() * shares.sum()
    found = np.searchsorted(np.cumsum(shares[order]), borders)
    ends = samples[order][np.minimum(found, len(samples) - 1)]
    cuts = np.searchsorted(scores_R, ends, "right")
    return _exchange(rows_R, np.diff(cuts, prepend=0, append=len(rows_R)))


def exchange_by_key(rows_R: NDArray[Any]) -> NDArray[Any]:
    """Deals rows by their keys, such as users: those of one key come to one rank, [R].

    Args:
        rows_R: structured array with the field ``key``, a hash of 64 bits (int64).
    """
    if world_size() == 1:
        return rows_R
    mixed_R = rows_R["key"].astype(np.uint64) * _MIX >> np.uint64(32)
    ranks_R = (mixed_R % np.uint64(world_size())).astype(np.uint16)
    return _exchange_by_rank(rows_R, ranks_R)


def return_to_rank(rows_R: NDArray[Any]) -> NDArray[Any]:
    """Sends rows to the ranks that they name, [R].

    Args:
        rows_R: structured array with the field ``rank``.
    """
    return rows_R if world_size() == 1 else _exchange_by_rank(rows_R, rows_R["rank"])


def _exchange_by_rank(rows_R: NDArray[Any], ranks_R: NDArray[Any]) -> NDArray[Any]:
    order = np.argsort(ranks_R, kind="stable")
    return _exchange(rows_R[order], np.bincount(ranks_R, minlength=world_size()))


def _exchange(rows_R: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Sends rows, as bytes, to the ranks in whose order they stand."""
    dtype = rows_R.dtype
    sent = torch.from_numpy(rows_R.view(np.uint8).reshape(len(rows_R), dtype.itemsize))
    received: NDArray[np.uint8] = exchange_rows(sent, counts.tolist()).numpy()
    return received.reshape(-1).view(dtype)
