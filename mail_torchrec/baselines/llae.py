"""LLAE: linear low-rank autoencoder between attributes and behaviours, in closed form.

Source: Li et al., "From Zero-Shot Learning to Cold-Start Recommendation", AAAI 2019.
Shape letters: ``P`` attributes, ``Q`` pooled behaviours, ``D`` both, ``N`` rows (users), ``R``
singular vectors; ``S_PN`` and ``X_QN`` have a user in each column.

LLAE minimises ``|X - W^T S|^2 + balance |W X - S|^2 + weight rank(W)`` over the encoder ``W``
[P, Q] (behaviours -> attributes; its transpose is the decoder). The rank is relaxed to
``|V^T W|^2`` with ``V`` the left singular vectors of ``W`` behind the ``rank`` first ones. For a
fixed V the gradient is zero where ``A W + W B = C``, a Sylvester equation with

    A = S S^T + weight V V^T,    B = balance X X^T,    C = (1 + balance) S X^T

and W and V are found in turns. Differences from the paper, whose S and X are fixed tables of 0/1
and counts of n users:

- S and X are embeddings, which move while they are trained, so the three products are moving
  averages over warm users;
- they are centred and each element is divided by its standard deviation, so that neither tables
  that grow nor attributes of a wider initial range change what ``weight`` means;
- the paper sums over its n users where these are means, so its weight is divided by n, the warm
  users so far.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mail_torchrec.baselines.filler import BehaviourFiller
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.standardisation import RunningCovariance


class LLAESettings(Settings):
    """Linear low-rank autoencoder (Li et al., AAAI 2019)."""

    name: Literal["llae"]
    """Name of the baseline."""
    weight: float = Field(default=30.0, ge=0.0)
    """Weight of the low-rank term, against sums over all warm users; the default is the paper's."""
    balance: float = Field(default=1.0, gt=0.0)
    """Weight of the encoder's error against the decoder's (lambda)."""
    rank: PositiveInt = 8
    """Singular values of W that the low-rank term leaves alone."""
    rounds: int = Field(default=2, ge=0)
    """Rounds in which V is taken from W and W is solved for again; the first W is solved for
    without the low-rank term."""
    solve_every: PositiveInt = 10
    """Training steps between two solutions. One costs (number of attributes * dimension)^3
    operations."""
    momentum: float = Field(default=0.02, gt=0.0, le=1.0)
    """Weight of the newest batch in the moving averages."""


class LLAE(BehaviourFiller):
    """Predicts pooled behaviours ``W^T s`` of cold users from their attributes ``s``.

    The last solution is kept as one affine map, saved with the model: evaluation solves nothing.

    Args:
        settings: weights, rank and how often to solve.
        sequences: the behaviour sequences.
        num_attributes: P, elements of all attribute vectors and numeric attributes together.
    """

    map_PQ: Tensor
    """Decoder of the last solution, in the scale of the embeddings."""
    offset_Q: Tensor
    """Offset of the last solution."""
    num_steps: Tensor
    """Training steps so far, [] (int64)."""

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
        # The same number on the host, which would wait for a GPU to read it: read once a run.
        self._num_steps: int | None = None

    def update_pooled(self, attributes_NP: Tensor, pooled_NQ: Tensor, weights_N: Tensor) -> None:
        """Updates the moments; solves the equation again every ``solve_every`` steps."""
        self.moments.update(torch.cat([attributes_NP, pooled_NQ], dim=1), weights_N)
        if self._num_steps is None:
            self._num_steps = int(self.num_steps)
        if self._num_steps % self.settings.solve_every == 0:
            self._solve()
        self._num_steps += 1
        self.num_steps += 1

    def predict_pooled(self, attributes_NP: Tensor) -> Tensor:
        """Decodes the attributes to pooled behaviours [N, Q]."""
        return torch.addmm(self.offset_Q, attributes_NP, self.map_PQ)

    def _solve(self) -> None:
        """Solves for standardised elements, and stores the map in their own scale."""
        P, settings, covariance_DD = self.num_attributes, self.settings, self.moments.covariance_DD
        variance_D, mean_D = covariance_DD.diagonal(), self.moments.mean_D
        # An element without variance, as an attribute of one value, carries no information.
        scale_D = torch.where(variance_D > self.moments.tiny, variance_D.rsqrt(), 0.0)
        correlation_DD = scale_D[:, None] * covariance_DD * scale_D
        W_PQ = low_rank_autoencoder(
            correlation_DD[:P, :P],
            correlation_DD[P:, P:],
            correlation_DD[:P, P:],
            weight=settings.weight / self.moments.num_rows.clamp(min=1),
            balance=settings.balance,
            rank=settings.rank,
            rounds=settings.rounds,
        )
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
    """Computes the encoder W [P, Q] that the head of the module describes.

    Args:
        SS_PP: the product S S^T.
        XX_QQ: the product X X^T.
        SX_PQ: the product S X^T.
        weight: of the low-rank term, [], in the same units (sums or means over rows) as the
            products.
        balance: of the encoder's error.
        rank: singular values that the low-rank term leaves alone.
        rounds: rounds of V from W and W from V.
    """
    B_QQ, C_PQ = balance * XX_QQ, (1 + balance) * SX_PQ
    W_PQ = solve_sylvester(SS_PP, B_QQ, C_PQ)
    for _ in range(rounds):
        kept_PR = torch.linalg.svd(W_PQ, full_matrices=False).U[:, :rank]
        identity_PP = torch.eye(len(SS_PP), dtype=SS_PP.dtype, device=SS_PP.device)
        others_PP = identity_PP - kept_PR @ kept_PR.T  # V V^T
        W_PQ = solve_sylvester(SS_PP + weight * others_PP, B_QQ, C_PQ)
    return W_PQ


def solve_sylvester(A_PP: Tensor, B_QQ: Tensor, C_PQ: Tensor) -> Tensor:
    """Solves ``A W + W B = C`` for W [P, Q] in float64 (a Sylvester equation).

    In the eigenvectors of both, ``(a_p + b_q) w_pq = c_pq``. Where ``a_p + b_q`` is 0 the data do
    not determine W, and W is 0 there.

    Args:
        A_PP: symmetric positive semi-definite.
        B_QQ: symmetric positive semi-definite.
        C_PQ: the right side.
    """
    a_P, U_PP = torch.linalg.eigh(A_PP.double())
    b_Q, U_QQ = torch.linalg.eigh(B_QQ.double())
    sums_PQ = a_P[:, None] + b_Q
    rounding = torch.finfo(sums_PQ.dtype).eps * max(sums_PQ.shape) * sums_PQ.abs().max()
    turned_PQ = U_PP.T @ C_PQ.double() @ U_QQ
    return U_PP @ torch.where(sums_PQ > rounding, turned_PQ / sums_PQ, 0.0) @ U_QQ.T
