"""Check for a sample ratio mismatch: numbers of users in the arms that are no accident."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SampleRatioCheck:
    """Pearson's chi-square test of the arms' numbers of users (one degree of freedom)."""

    expected: float
    """Share of users that the candidate should have."""
    found: float
    """Share of users that saw the candidate."""
    p: float
    """Probability of so large a difference by chance."""


def check_sample_ratio(share: float, num_base: int, num_candidate: int) -> SampleRatioCheck:
    """Tests the arms' numbers of users.

    Args:
        share: share of users that the candidate should have.
        num_base: users of the base.
        num_candidate: users of the candidate.
    """
    total = num_base + num_candidate
    expected = total * share
    chi_square = math.inf  # of a share of 0 or 1, with which there should be one arm only
    if 0 < share < 1:
        chi_square = (num_candidate - expected) ** 2 * (1 / expected + 1 / (total - expected))
    return SampleRatioCheck(share, num_candidate / total, math.erfc(math.sqrt(chi_square / 2)))
