"""The ``mail-torchrec abtest`` command: a log to a report."""

from collections.abc import Sequence

from mail_torchrec.abtest.arms import ArmAssignment, assign_arms
from mail_torchrec.abtest.estimates import METRICS, compare_metric
from mail_torchrec.abtest.exposures import LogColumns, read_exposures
from mail_torchrec.abtest.impressions import read_impressions
from mail_torchrec.abtest.report import AbTestReport
from mail_torchrec.abtest.since_first import read_since_first


def abtest(
    log: Sequence[str], columns: LogColumns, assignment: ArmAssignment, num_resamples: int = 0
) -> AbTestReport:
    """Compares the two arms of a log.

    Args:
        log: Parquet files, folders or URIs.
        columns: names of the log's columns.
        assignment: versions of the arms, and the expected split of users.
        num_resamples: resamples of a bootstrap of users; 0 takes the delta method.

    Raises:
        ValueError: an unusable log or assignment; the message says what to do.
    """
    exposures = read_exposures(log, columns)
    arms = assign_arms(exposures, assignment)
    metrics = [name for name in METRICS if name == "CTR" or columns.conversion is not None]
    comparisons = {
        cohort: {metric: compare_metric(sums_U3, metric, num_resamples) for metric in metrics}
        for cohort, sums_U3 in arms.sums_U3.items()
    }
    since_first = None
    if columns.day is not None:
        impressions = read_impressions(log, columns, arms.versions)
        since_first = read_since_first(impressions, num_resamples)
    method = "by the delta method over users"
    if num_resamples:
        method = f"by a bootstrap of users ({num_resamples} resamples; p by the delta method)"
    return AbTestReport(arms, comparisons, method, exposures.num_unclicked, since_first)
