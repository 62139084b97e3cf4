"""InfoNCE with in-batch negatives (van den Oord et al. 2018), as CLCRec aligns items with it.

Source: Wei et al., "Contrastive Learning for Cold-Start Recommendation", MM 2021: the anchor is an
item's id vector, the positive its content vector, the negatives other items' content vectors; both
are normalised. Negatives may lie on several ranks, so the sum over them comes in parts. Of users,
whose rows are all different, ``losses/contrastive.py`` aligns the codes.

Shape letters: ``A`` anchors, ``B`` candidates (rows with a generated vector), ``G`` elements.
"""

import torch
from torch import Tensor
from torch.nn import functional


def cosine_logits(anchors_AG: Tensor, candidates_BG: Tensor, temperature: float) -> Tensor:
    """Computes ``(cosine - 1) / temperature`` of all pairs, [A, B]; at most 0, so no exp overflows.

    InfoNCE does not change with a constant that is added to all logits.

    Args:
        anchors_AG: vectors of any length.
        candidates_BG: likewise.
        temperature: small ones weigh the nearest negatives most.
    """
    anchors_AG, candidates_BG = (
        functional.normalize(anchors_AG),
        functional.normalize(candidates_BG),
    )
    return (anchors_AG @ candidates_BG.T - 1) / temperature


def negative_sums(
    logits_AB: Tensor,
    ids: tuple[Tensor, Tensor],
    is_counted: tuple[Tensor, Tensor],
) -> Tensor:
    """Sums ``exp(logit)`` over the candidates of other items, each distinct item once, [A].

    Every counted row of an item counts by one over their number, so that popular items are no
    likelier negatives than others, as with CLCRec's uniform draws.

    Args:
        logits_AB: of :func:`cosine_logits`; the candidates are the rows of the anchors, or a part.
        ids: items of the anchors [A] and of the candidates [B] (int64).
        is_counted: of both the rows that are negatives, [A] and [B] (bool).
    """
    is_same_AB = ids[0].unsqueeze(1) == ids[1].unsqueeze(0)
    num_rows_B = (is_same_AB & is_counted[0].unsqueeze(1)).sum(0)
    shares_B = is_counted[1].to(logits_AB.dtype) / num_rows_B.clamp(min=1)
    return (logits_AB.exp() * ~is_same_AB * shares_B).sum(1)


def info_nce(positive_logits_B: Tensor, negative_sums_B: Tensor) -> Tensor:
    """Computes ``-log(exp(positive) / (exp(positive) + negatives))`` of each row, [B].

    Args:
        positive_logits_B: logits of the rows' own pairs.
        negative_sums_B: sums of ``exp(logit)`` over their negatives.
    """
    return torch.log(positive_logits_B.exp() + negative_sums_B) - positive_logits_B
