"""Moving moments of vectors over the rows of all ranks, and standardisation by them.

Shape letters: ``N`` rows, ``D`` elements of a row, ``Z`` these elements and a constant 1.
"""

import torch
from torch import Tensor, nn

from mail_torchrec.distributed.collectives import sum_over_ranks

_TINY = 1e-12  # tables may begin with elements of 1e-3, whose variance is far above this


class RunningMoments(nn.Module):
    """Moving mean and variance of each element over the rows of all ranks.

    Args:
        dim: D, elements of a row.
        momentum: weight of the newest batch.
    """

    def __init__(self, dim: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.dim, self.momentum = dim, momentum
        # The weight of the rows in the sums; the rest is the zeros that the sums began with.
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("sum_D", torch.zeros(dim))
        self.register_buffer("square_D", torch.zeros(dim))

    @torch.no_grad()
    def update(self, x_ND: Tensor, weights_N: Tensor) -> None:
        """Adds a batch to the moving moments; a collective call of all ranks.

        Args:
            x_ND: rows of this rank; ``N`` may be 0.
            weights_N: weight of each row; 0 leaves it out.
        """
        weights_N1, x_ND = weights_N.to(self.sum_D.dtype).unsqueeze(1), x_ND.to(self.sum_D.dtype)
        weighted_ND, squared_ND = x_ND * weights_N1, x_ND.square() * weights_N1
        sums = sum_over_ranks(torch.cat([weighted_ND.sum(0), squared_ND.sum(0), weights_N1.sum(0)]))
        sum_D, square_D, total = sums[: self.dim], sums[self.dim : -1], sums[-1]
        momentum, total = self.momentum * (total > 0), torch.where(total > 0, total, 1)
        self.sum_D.lerp_(sum_D / total, momentum)
        self.square_D.lerp_(square_D / total, momentum)
        self.weight.lerp_(torch.ones_like(self.weight), momentum)

    @property
    def mean_D(self) -> Tensor:
        """The moving mean, 0 before any row."""
        mean_D: Tensor = self.sum_D / self.weight.clamp(min=_TINY)
        return mean_D

    @property
    def deviation_D(self) -> Tensor:
        """The standard deviation, 1 before any row."""
        squares_D = self.square_D / self.weight.clamp(min=_TINY)
        variance_D = (squares_D - self.mean_D.square()).clamp(min=_TINY)
        return torch.where(self.weight > 0, variance_D.sqrt(), torch.ones_like(variance_D))


class RunningCovariance(nn.Module):
    """Moving mean and covariance of all elements, over the rows of all ranks, in float64.

    Args:
        dim: D, elements of a row.
        momentum: weight of the newest batch.
    """

    tiny = _TINY
    """A variance below this is rounding."""

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        # Of rows that end with a 1, so that the last column holds the mean, and the corner the
        # weight of what was observed.
        self.register_buffer("products_ZZ", torch.zeros(dim + 1, dim + 1, dtype=torch.float64))
        self.register_buffer("num_rows", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x_ND: Tensor, weights_N: Tensor) -> None:
        """Adds a batch to the moving moments; a collective call of all ranks.

        Args:
            x_ND: rows of this rank; ``N`` may be 0.
            weights_N: weight of each row.
        """
        x_NZ = nn.functional.pad(x_ND.to(self.products_ZZ.dtype), (0, 1), value=1.0)
        sums_ZZ = sum_over_ranks((x_NZ * weights_N.to(x_NZ.dtype).unsqueeze(1)).T @ x_NZ)
        total = sums_ZZ[-1, -1]
        averages_ZZ = sums_ZZ / torch.where(total > 0, total, 1)
        self.products_ZZ.lerp_(averages_ZZ, self.momentum * (total > 0))
        self.num_rows.add_(total)

    @property
    def mean_D(self) -> Tensor:
        """The moving mean, 0 before any row."""
        mean_D: Tensor = self._averages_ZZ[:-1, -1]
        return mean_D

    @property
    def covariance_DD(self) -> Tensor:
        """The moving covariance, 0 before any row."""
        mean_D = self.mean_D
        covariance_DD: Tensor = self._averages_ZZ[:-1, :-1] - torch.outer(mean_D, mean_D)
        return covariance_DD

    @property
    def _averages_ZZ(self) -> Tensor:
        averages_ZZ: Tensor = self.products_ZZ / self.products_ZZ[-1, -1].clamp(min=_TINY)
        return averages_ZZ


class Standardiser(RunningMoments):
    """Standardises vectors by their moving mean and deviation.

    Tables grow as they are trained, so a squared error of their vectors grows too and its optimizer
    follows a moving target. Standardised vectors keep the scale of 1. Before any row was observed,
    vectors stay as they are.

    Vectors [N, V, d] are read as rows of D elements: all vectors of a row together (D = V * d), or
    each by itself (D = d).
    """

    def update_vectors(
        self, vectors_NVD: Tensor, weights_N: Tensor, mask_NV: Tensor | None = None
    ) -> None:
        """Adds vectors to the moving moments; a collective call of all ranks.

        In evaluation mode, which a frozen tower keeps, the moments stay as they are.

        Args:
            vectors_NVD: vectors of this rank's rows; ``N`` may be 0.
            weights_N: weight of each row.
            mask_NV: vectors that count (bool); all of them by default.
        """
        if not self.training:
            return
        rows = self._as_rows(vectors_NVD)
        num_parts = rows.shape[0] // max(weights_N.shape[0], 1)
        weights_NP = weights_N.unsqueeze(1).expand(-1, num_parts)
        self.update(rows, (weights_NP if mask_NV is None else weights_NP * mask_NV).flatten())

    def forward(self, vectors_NVD: Tensor) -> Tensor:
        """Standardises vectors, ``(x - mean) / deviation``; keeps their shape."""
        rows, dtype = self._as_rows(vectors_NVD), vectors_NVD.dtype
        standardised = (rows - self.mean_D.to(dtype)) / self.deviation_D.to(dtype)
        return standardised.view_as(vectors_NVD)

    def inverse(self, vectors_NVD: Tensor) -> Tensor:
        """Returns standardised vectors to their own scale; keeps their shape."""
        rows, dtype = self._as_rows(vectors_NVD), vectors_NVD.dtype
        scaled = rows * self.deviation_D.to(dtype) + self.mean_D.to(dtype)
        return scaled.view_as(vectors_NVD)

    def _as_rows(self, vectors_NVD: Tensor) -> Tensor:
        return vectors_NVD.reshape(vectors_NVD.numel() // self.dim, self.dim)
