"""Behaviour sequences as decoder targets, and decoded vectors as behaviour sequences.

Shape letters: ``N`` rows, ``T`` positions of one sequence, ``R`` positions of all sequences
together, ``S`` sequences, ``d`` a vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mail_torchrec.towers.inputs import position_mask

Behaviours = tuple[Tensor, Tensor]
"""One sequence: its vectors [N, T, d] and each row's number of them [N]."""


def join(sequences: Sequence[Behaviours]) -> Behaviours:
    """The sequences one behind the other, zeros on padding: [N, R, d], and the mask of real positions [N, R]."""
    mask_NR = torch.cat(
        [position_mask(lengths_N, values_NTD.shape[1]) for values_NTD, lengths_N in sequences],
        dim=1,
    )
    values_NRD = torch.cat([values_NTD for values_NTD, _ in sequences], dim=1)
    return values_NRD.masked_fill(~mask_NR.unsqueeze(2), 0.0), mask_NR


def pooled(sequences: Sequence[Behaviours]) -> Tensor:
    """The sum of each sequence's real behaviours over its T, [N, S, d]: their mean where padding counts as zeros."""
    sums = [
        values_NTD.masked_fill(
            ~position_mask(lengths_N, values_NTD.shape[1]).unsqueeze(2), 0.0
        ).sum(1)
        / values_NTD.shape[1]
        for values_NTD, lengths_N in sequences
    ]
    return torch.stack(sums, dim=1)


def split(
    decoded_NRD: Tensor, max_lengths: Sequence[int], relative_NS: Tensor | None
) -> list[Behaviours]:
    """Positions end to end -> sequences, cut to ``relative_NS`` of their T if it is there."""
    cut = []
    for index, values_NTD in enumerate(torch.split(decoded_NRD, list(max_lengths), dim=1)):
        lengths_N = _lengths(values_NTD, values_NTD.shape[1], index, relative_NS)
        cut.append(
            (values_NTD * position_mask(lengths_N, values_NTD.shape[1]).unsqueeze(2), lengths_N)
        )
    return cut


def spread(
    decoded_NSD: Tensor, max_lengths: Sequence[int], relative_NS: Tensor | None
) -> list[Behaviours]:
    """What :func:`pooled` is to become -> sequences of equal behaviours with that sum, all T or ``relative_NS`` of them."""
    shared = []
    for index, max_length in enumerate(max_lengths):
        lengths_N = _lengths(decoded_NSD, max_length, index, relative_NS)
        each_ND = decoded_NSD[:, index] * (max_length / lengths_N.to(decoded_NSD.dtype)).unsqueeze(
            1
        )
        shared.append(
            (each_ND.unsqueeze(1) * position_mask(lengths_N, max_length).unsqueeze(2), lengths_N)
        )
    return shared


def _lengths(like: Tensor, max_length: int, sequence: int, relative_NS: Tensor | None) -> Tensor:
    if relative_NS is None:
        return torch.full(like.shape[:1], max_length, dtype=torch.int64, device=like.device)
    return (relative_NS[:, sequence] * max_length).round().clamp(1, max_length).long()
