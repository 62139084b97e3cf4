"""Conversion of behaviour sequences to decoder targets, and of decoded vectors to sequences.

Shape letters: ``N`` rows, ``T`` positions of one sequence, ``R`` positions of all sequences
together, ``S`` sequences, ``D`` elements of a vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mail_torchrec.towers.layers.sequences import position_mask

Behaviours = tuple[Tensor, Tensor]
"""One sequence: its vectors [N, T, D] and each row's number of them [N]."""


def concat_sequences(sequences: Sequence[Behaviours]) -> tuple[Tensor, Tensor]:
    """Concatenates sequences along the positions.

    Returns:
        The vectors [N, R, D], zeros on padding, and the mask of real positions [N, R].
    """
    masks = [position_mask(lengths_N, values_NTD.shape[1]) for values_NTD, lengths_N in sequences]
    mask_NR = torch.cat(masks, dim=1)
    values_NRD = torch.cat([values_NTD for values_NTD, _ in sequences], dim=1)
    return values_NRD.masked_fill(~mask_NR.unsqueeze(2), 0.0), mask_NR


def mean_over_positions(sequences: Sequence[Behaviours]) -> Tensor:
    """Mean of each sequence over all its T positions, padding counted as zeros, [N, S, D]."""
    means = []
    for values_NTD, lengths_N in sequences:
        num_positions = values_NTD.shape[1]
        mask_NT = position_mask(lengths_N, num_positions)
        means.append(values_NTD.masked_fill(~mask_NT.unsqueeze(2), 0.0).sum(1) / num_positions)
    return torch.stack(means, dim=1)


def split_positions(
    decoded_NRD: Tensor, max_lengths: Sequence[int], relative_NS: Tensor | None
) -> list[Behaviours]:
    """Splits decoded positions into sequences, the inverse of :func:`concat_sequences`.

    Args:
        decoded_NRD: vectors of all sequences end to end.
        max_lengths: T of each sequence.
        relative_NS: predicted length of each sequence as a share of its T; None keeps all T.
    """
    sequences = []
    for index, values_NTD in enumerate(torch.split(decoded_NRD, list(max_lengths), dim=1)):
        lengths_N = virtual_lengths(values_NTD, values_NTD.shape[1], index, relative_NS)
        mask_NT = position_mask(lengths_N, values_NTD.shape[1])
        sequences.append((values_NTD * mask_NT.unsqueeze(2), lengths_N))
    return sequences


def repeat_over_positions(
    decoded_NSD: Tensor, max_lengths: Sequence[int], relative_NS: Tensor | None
) -> list[Behaviours]:
    """Makes sequences of equal behaviours whose :func:`mean_over_positions` is the given one.

    Args:
        decoded_NSD: mean of each sequence over its T positions.
        max_lengths: T of each sequence.
        relative_NS: length of each sequence as a share of its T; None fills all T.
    """
    sequences = []
    for index, max_length in enumerate(max_lengths):
        lengths_N = virtual_lengths(decoded_NSD, max_length, index, relative_NS)
        scale_N = max_length / lengths_N.to(decoded_NSD.dtype)
        each_ND = decoded_NSD[:, index] * scale_N.unsqueeze(1)
        mask_NT = position_mask(lengths_N, max_length)
        sequences.append((each_ND.unsqueeze(1) * mask_NT.unsqueeze(2), lengths_N))
    return sequences


def virtual_lengths(
    like: Tensor, max_length: int, index: int, relative_NS: Tensor | None
) -> Tensor:
    """Returns the lengths [N] (int64) of virtual sequences: all T, or the predicted share of them.

    Args:
        like: any tensor [N, ...] of the rows.
        max_length: T of the sequence.
        index: of the sequence.
        relative_NS: length of each sequence as a share of its T; None fills all T.
    """
    if relative_NS is None:
        return torch.full(like.shape[:1], max_length, dtype=torch.int64, device=like.device)
    return (relative_NS[:, index] * max_length).round().clamp(1, max_length).long()
