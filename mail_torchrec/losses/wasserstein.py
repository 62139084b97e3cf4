"""Wasserstein distance of Gaussian distributions.

Shape letters: ``N`` rows, ``H`` elements of a code.
"""

from torch import Tensor


def gaussian_wasserstein(
    means_NH: Tensor,
    log_variances_NH: Tensor,
    other_means_NH: Tensor,
    other_log_variances_NH: Tensor,
) -> Tensor:
    """Computes the squared 2-Wasserstein distance of diagonal Gaussian distributions, [N].

    ``|m - m'|^2 + |s - s'|^2`` with the standard deviations ``s`` (CVAR, Zhao et al., SIGIR 2022).

    Args:
        means_NH: of one distribution a row.
        log_variances_NH: logs of its variances.
        other_means_NH: of the other.
        other_log_variances_NH: likewise.
    """
    deviations_NH = (log_variances_NH / 2).exp() - (other_log_variances_NH / 2).exp()
    return ((means_NH - other_means_NH).square() + deviations_NH.square()).sum(1)
