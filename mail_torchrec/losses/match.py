"""Sampled softmax, the auxiliary match loss of DMR (Lyu et al., AAAI 2020).

Shape letters: ``B`` users, ``K`` negatives, ``D`` elements of a vector.
"""

import torch
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    user_BD: Tensor,
    last_BD: Tensor,
    negatives_KD: Tensor,
    last_ids_B: Tensor,
    negative_ids_K: Tensor,
    last_log_q_B: Tensor,
    negative_log_q_K: Tensor,
) -> Tensor:
    """Computes the cross-entropy of each newest behaviour against shared negatives, [B].

    Logits are ``u . v' - log q`` with ``q`` the expected count of the id in the sample (Jean et
    al., ACL 2015), which makes the sampled softmax an estimate of the full one. A negative that is
    the row's own newest behaviour (an accidental hit) is left out.

    Args:
        user_BD: the user vectors.
        last_BD: output-side vectors of the newest behaviours.
        negatives_KD: output-side vectors of the negatives; without any (``K`` = 0, outside
            training) the loss is 0.
        last_ids_B: ids of the newest behaviours.
        negative_ids_K: ids of the negatives.
        last_log_q_B: log expected counts of the newest behaviours.
        negative_log_q_K: log expected counts of the negatives.
    """
    if negatives_KD.shape[0] == 0:
        return user_BD.new_zeros(user_BD.shape[0])
    last_B1 = ((user_BD * last_BD).sum(1) - last_log_q_B).unsqueeze(1)
    negatives_BK = user_BD @ negatives_KD.T - negative_log_q_K
    hits_BK = last_ids_B.unsqueeze(1) == negative_ids_K
    logits_BK1 = torch.cat([last_B1, negatives_BK.masked_fill(hits_BK, -torch.inf)], dim=1)
    return functional.cross_entropy(
        logits_BK1, torch.zeros_like(last_ids_B, dtype=torch.int64), reduction="none"
    )
