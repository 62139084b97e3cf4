"""Contrastive alignment of two codes of the same users (CLCRec, Wei et al., MM 2021).

Source: Wei et al., "Contrastive Learning for Cold-Start Recommendation", its loss between the
collaborative embedding of an item and the code of its features; here of a user's behaviours and
attributes. ``losses/info_nce.py`` is that of items, many of which have several rows.

Shape letters: ``N`` rows of this rank, ``M`` rows of all ranks, ``H`` elements of a code.
"""

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-30


def contrastive_loss(
    anchors_NH: Tensor,
    candidates_MH: Tensor,
    temperature: float,
    weights_M: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Computes InfoNCE of each anchor against all candidates [N].

    ``-log(exp(s_ii) / sum_j w_j exp(s_ij))`` where ``s_ij`` is the cosine of anchor ``i`` and
    candidate ``j`` over the temperature. CLCRec draws its negatives; here the other candidates are
    the negatives, all of them.

    Args:
        anchors_NH: codes; ``N`` may be 0.
        candidates_MH: codes of the other kind, of this rank's rows and, if the loss goes over all
            ranks, of theirs.
        temperature: divides the cosines.
        weights_M: weight of each candidate, as if it were repeated so often; 1 by default.
        first: index of the candidate of anchor 0; the others follow in order.

    Returns:
        The losses, computed in float32 at least.
    """
    dtype = torch.promote_types(anchors_NH.dtype, torch.float32)
    with torch.autocast(anchors_NH.device.type, enabled=False):
        unit_NH = functional.normalize(anchors_NH.to(dtype), dim=1)
        unit_MH = functional.normalize(candidates_MH.to(dtype), dim=1)
        similarities_NM = unit_NH @ unit_MH.T / temperature
        own_N = (unit_NH * unit_MH[first : first + len(unit_NH)]).sum(1) / temperature
        if weights_M is not None:
            similarities_NM = similarities_NM + weights_M.to(dtype).clamp(min=_TINY).log()
        return similarities_NM.logsumexp(1) - own_N
