"""From a log to a report."""

from collections.abc import Sequence

from mail_torchrec.abtest.arms import Assignment, make_arms
from mail_torchrec.abtest.estimates import FIGURES, compare
from mail_torchrec.abtest.exposures import LogColumns, read_exposures
from mail_torchrec.abtest.report import Report


def abtest(
    log: Sequence[str], columns: LogColumns, assignment: Assignment, num_resamples: int = 0
) -> Report:
    """Compares the two arms of a log.

    Args:
        log: Parquet files, folders or URIs.
        columns: their names.
        assignment: which versions are an arm, and what split there should be.
        num_resamples: of a bootstrap of users; 0 takes the delta method.

    Raises:
        ValueError: a bad log or assignment; the message says what to do.
    """
    exposures = read_exposures(log, columns)
    arms = make_arms(exposures, assignment)
    figures = [name for name in FIGURES if name == "CTR" or columns.conversion is not None]
    comparisons = {
        part: {figure: compare(sums_U3, figure, num_resamples) for figure in figures}
        for part, sums_U3 in arms.sums_U3.items()
    }
    method = (
        f"by a bootstrap of users ({num_resamples} resamples; p by the delta method)"
        if num_resamples
        else "by the delta method over users"
    )
    return Report(arms, comparisons, method, exposures.unclicked)
