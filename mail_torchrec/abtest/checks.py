"""Warnings and notes on an A/B test: what makes its metrics doubtful, and how they were made."""

from collections.abc import Iterator, Mapping

from mail_torchrec.abtest.arms import ARMS, ExperimentArms
from mail_torchrec.abtest.estimates import METRICS, MetricComparison
from mail_torchrec.abtest.formatting import percent
from mail_torchrec.reporting.cohorts import COHORT_NAMES

Comparisons = Mapping[str, Mapping[str, MetricComparison]]
"""Comparisons by cohort and metric."""
_MIN_P = 0.001  # a smaller p of the arms' numbers of users is a sample ratio mismatch
_MAX_IN_BOTH = 0.01  # a larger share of users who saw both arms makes the test itself doubtful
_MIN_USERS = 30  # users with an event that an interval needs


def warnings(arms: ExperimentArms, comparisons: Comparisons) -> Iterator[str]:
    """Yields what makes the metrics doubtful."""
    if (ratio := arms.sample_ratio) is not None and ratio.p < _MIN_P:
        yield (
            f"sample ratio mismatch: {percent(ratio.found, 3)} of the users saw the candidate, "
            f"and {percent(ratio.expected, 3)} should have (p = {ratio.p:.1g}); find the cause "
            "(lost logs, a changed split, requests that fail in one arm) before you believe any "
            "metric below"
        )
    if arms.num_in_both:
        share = arms.num_in_both / arms.num_users
        doubt = "; so many that the test itself is doubtful" if share > _MAX_IN_BOTH else ""
        yield (
            f"{arms.num_in_both:,} users ({percent(share, 2)}) saw both arms; they are left "
            f"out{doubt}"
        )
    if arms.num_misassigned:
        yield (
            f"{arms.num_misassigned:,} users saw the version that the split does not give them "
            "(another salt or share, or requests that named a version); they count where they were"
        )
    yield from _few_events(arms, comparisons)


def _few_events(arms: ExperimentArms, comparisons: Comparisons) -> Iterator[str]:
    for cohort, metrics in comparisons.items():
        for metric in metrics:
            for arm in ARMS:
                events_U = arms.sums_U3[cohort][arm][:, METRICS[metric][0]]
                num_users = int((events_U > 0).sum())
                if num_users < _MIN_USERS:
                    yield (
                        f"{metric} of {COHORT_NAMES[cohort]}: only {num_users} users of the {arm} "
                        "had an event, too few for its interval"
                    )


def notes(arms: ExperimentArms, method: str, num_unclicked: int) -> Iterator[str]:
    """Yields what was done.

    Args:
        arms: users of the arms.
        method: method of the intervals.
        num_unclicked: conversions without a click, in the whole log.
    """
    yield f"Intervals are 95 %, {method}; a user's impressions are taken together."
    if (ratio := arms.sample_ratio) is None:
        yield (
            "The arms' shares of users were not checked: say by --split or --share what they "
            "should be."
        )
    elif ratio.p >= _MIN_P:
        yield (
            f"{percent(ratio.found, 3)} of the users saw the candidate, "
            f"{percent(ratio.expected, 3)} should have: by chance (p = {ratio.p:.2g})."
        )
    if arms.num_misassigned == 0:
        yield "Every user saw the version that the split gives them."
    if arms.other_impressions:
        counts = [
            f"{number:,} impressions of version {name}"
            for name, number in arms.other_impressions.items()
        ]
        yield f"Left out: {', '.join(counts)}."
    if num_unclicked:
        yield f"{num_unclicked:,} conversions without a click count as none."
