"""LLAE: a linear low-rank autoencoder between attributes and behaviours, in closed form.

Source: Li et al., "From Zero-Shot Learning to Cold-Start Recommendation", AAAI 2019.
Shape letters: ``P`` attributes, ``Q`` pooled behaviours, ``N`` rows; ``S_PN`` and ``X_QN`` have a
row of data in each column.

It minimises ``|X - W^T S|^2 + balance |W X - S|^2 + weight rank(W)`` over the encoder ``W`` [P, Q]
(behaviours -> attributes; its transpose is the decoder). The rank stands relaxed, as ``|V^T W|^2``
with ``V`` the left singular vectors of ``W`` behind the ``rank`` first ones. For a fixed V the
gradient is zero where ``A W + W B = C``, a Sylvester equation with

    A = S S^T + weight V V^T,    B = balance X X^T,    C = (1 + balance) S X^T

and W and V are found in turns. What differs from the paper, whose S and X are fixed tables of 0/1
and counts of n users:

- S and X are embeddings, which move while they are trained, so the three products are moving
    averages over old rows;
- they are centred and each element is divided by its standard deviation, so that neither tables
  that grow nor attributes of a wider initial range change what ``weight`` means;
- the paper sums over its n users where these are means, so its weight is divided by n: the old rows
    met so far.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mail_torchrec.baselines.filler import Filler
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.standardise import RunningCovariance


class LLAESettings(Settings):
    """LLAE. ``weight`` is the paper's."""

    name: Literal["llae"]
    weight: float = Field(default=30.0, ge=0.0)
    """Of the low-rank term, against sums over all old rows."""
    balance: float = Field(default=1.0, gt=0.0)
    """Of the encoder's error, against the decoder's (lambda)."""
    rank: PositiveInt = 8
    """Singular values of W that the low-rank term leaves alone."""
    rounds: int = Field(default=2, ge=0)
    """How often V is taken from W and W solved for again; the first W is solved for without the
    low-rank term."""
    solve_every: PositiveInt = 10
    """Training steps between two solutions. One costs (number of attributes * dimension)^3."""
    momentum: float = Field(default=0.02, gt=0.0, le=1.0)
    """Weight of the newest batch in the moving averages."""


class LLAE(Filler):
    """New rows get ``W^T`` of their attributes, shared out over as many behaviours as old rows have on average.

    The last solution is kept as one affine map, saved with the model: evaluation solves nothing.

    Args:
        settings: weights, rank and how often to solve.
        sequences: the behaviour sequences.
        num_attributes: P, elements of all attribute vectors and numeric attributes together.
    """

    map_PQ: Tensor
    offset_Q: Tensor
    num_steps: Tensor

    def __init__(
        self, settings: LLAESettings, sequences: dict[str, SequenceShape], num_attributes: int
    ) -> None:
        super().__init__(sequences)
        self.settings, self.num_attributes = settings, num_attributes
        num_pooled = sum(shape.dim for shape in sequences.values())
        self.moments = RunningCovariance(num_attributes + num_pooled, settings.momentum)
        self.register_buffer("map_PQ", torch.zeros(num_attributes, num_pooled))
        self.register_buffer("offset_Q", torch.zeros(num_pooled))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def take(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Old rows into the moments; every ``solve_every`` steps the equation is solved again."""
        self.moments.observe(torch.cat([attributes_NP, pooled_NQ], dim=1), weights_N)
        if int(self.num_steps) % self.settings.solve_every == 0:
            self._solve()
        self.num_steps += 1

    def make(self, attributes_NP: Tensor) -> Tensor:
        """The decoded attributes [N, Q]."""
        return torch.addmm(self.offset_Q, attributes_NP, self.map_PQ)

    def _solve(self) -> None:
        """The moments' solution, from standardised elements back to their own scale."""
        P, covariance_DD, mean_D = (
            self.num_attributes,
            self.moments.covariance_DD,
            self.moments.mean_D,
        )
        variance_D = covariance_DD.diagonal()
        # An element that does not vary, as an attribute of one value, says nothing.
        scale_D = torch.where(variance_D > self.moments.tiny, variance_D.rsqrt(), 0.0)
        correlation_DD = scale_D[:, None] * covariance_DD * scale_D
        weight = self.settings.weight / self.moments.num_rows.clamp(min=1)
        W_PQ = low_rank_autoencoder(
            correlation_DD[:P, :P], correlation_DD[P:, P:], correlation_DD[:P, P:],
            weight=weight, balance=self.settings.balance, rank=self.settings.rank, rounds=self.settings.rounds,
        )  # fmt: skip
        map_PQ = scale_D[:P, None] * W_PQ * variance_D[P:].clamp(min=0).sqrt()
        self.map_PQ.copy_(map_PQ)
        self.offset_Q.copy_(mean_D[P:] - mean_D[:P] @ map_PQ)


def low_rank_autoencoder(
    SS_PP: Tensor,
    XX_QQ: Tensor,
    SX_PQ: Tensor,
    *,
    weight: Tensor | float,
    balance: float,
    rank: int,
    rounds: int,
) -> Tensor:
    """The encoder W [P, Q] of the module's head.

    Args:
        SS_PP: S S^T.
        XX_QQ: X X^T.
        SX_PQ: S X^T.
        weight: of the low-rank term, in the same units (sums or means over rows) as the products.
        balance: of the encoder's error.
        rank: singular values that the low-rank term leaves alone.
        rounds: how often V follows W.
    """
    B_QQ, C_PQ = balance * XX_QQ, (1 + balance) * SX_PQ
    W_PQ = solve_sylvester(SS_PP, B_QQ, C_PQ)
    for _ in range(rounds):
        kept_PR = torch.linalg.svd(W_PQ, full_matrices=False).U[:, :rank]
        others_PP = (
            torch.eye(len(SS_PP), dtype=SS_PP.dtype, device=SS_PP.device) - kept_PR @ kept_PR.T
        )  # V V^T
        W_PQ = solve_sylvester(SS_PP + weight * others_PP, B_QQ, C_PQ)
    return W_PQ


def solve_sylvester(A_PP: Tensor, B_QQ: Tensor, C_PQ: Tensor) -> Tensor:
    """W [P, Q] with ``A W + W B = C`` for symmetric positive semi-definite A and B, in float64.

    In the eigenvectors of both, ``(a_p + b_q) w_pq = c_pq``. Where ``a_p + b_q`` is 0 no data says
    what W is, and W is 0 there.
    """
    a_P, U_PP = torch.linalg.eigh(A_PP.double())
    b_Q, U_QQ = torch.linalg.eigh(B_QQ.double())
    sums_PQ = a_P[:, None] + b_Q
    rounding = torch.finfo(sums_PQ.dtype).eps * max(sums_PQ.shape) * sums_PQ.abs().max()
    turned_PQ = U_PP.T @ C_PQ.double() @ U_QQ
    return U_PP @ torch.where(sums_PQ > rounding, turned_PQ / sums_PQ, 0.0) @ U_QQ.T
