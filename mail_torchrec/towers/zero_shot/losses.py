"""Reconstruction targets and losses of the zero-shot tower (Feng et al. 2021, Eqs. 3 and 4).

Shape letters as in ``towers/zero_shot/tower.py``; ``C`` codes of a row.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mail_torchrec.losses.reconstruction import Reduction, reconstruction_loss, share_loss


@dataclass
class ZeroShotLosses:
    """Reconstruction losses of warm rows, and the codes that L_d aligns.

    A variant without one of them leaves it None.
    """

    a_N: Tensor | None = None
    """L_a: reconstruction errors from the attributes' code (Eq. 3)."""
    v_N: Tensor | None = None
    """L_v: reconstruction errors from the behaviours' code (Eq. 4)."""
    P_NH: Tensor | None = None
    """Codes of the attributes."""
    Q_NH: Tensor | None = None
    """Codes of the behaviours."""
    weights_N: Tensor | None = None
    """Weight of each row in the mean; the losses are not weighted by it."""

    @property
    def row_losses(self) -> dict[str, Tensor]:
        """Loss name (``a``, ``v``) -> loss of each row [N], of those that the variant has."""
        return {name: loss for name, loss in (("a", self.a_N), ("v", self.v_N)) if loss is not None}


class ReconstructionTarget(NamedTuple):
    """Vectors that a decoder has to reconstruct from a code."""

    decoder: nn.Module
    """Maps codes [rows, H] to vectors [rows, V * D]."""
    vectors_NVD: Tensor
    """The vectors."""
    mask_NV: Tensor | None = None
    """Vectors that count (bool); None where all do."""
    are_shares: bool = False
    """True where a vector is the shares of prototypes, and what is decoded their logits."""

    def losses(self, decoded_NVD: Tensor, reduction: Reduction) -> Tensor:
        """Computes the error of each row [N], on as many axes in front as the decoded ones have."""
        if self.are_shares:
            return share_loss(decoded_NVD, self.vectors_NVD)
        return reconstruction_loss(decoded_NVD, self.vectors_NVD, self.mask_NV, reduction)


def reconstruction_losses(
    codes: list[Tensor], targets: list[ReconstructionTarget], reduction: Reduction
) -> list[Tensor]:
    """Computes the errors [N] of all targets from each code (Eqs. 3 and 4).

    Args:
        codes: codes of the same rows, each [N, H].
        targets: vectors to reconstruct from every code.
        reduction: over the elements of a row.
    """
    # All codes go through a decoder together.
    joined = torch.cat(codes)
    losses_CN = [
        target.losses(target.decoder(joined).view(len(codes), *target.vectors_NVD.shape), reduction)
        for target in targets
    ]
    return list(torch.stack(losses_CN).sum(0))
