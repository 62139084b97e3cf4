"""Formats tables of methods as Markdown, and says in words which gains are clear of 0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mail_torchrec.reporting.compared_runs import METRICS
from mail_torchrec.reporting.comparison import MetricIntervals
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.bootstrap import COHORTS, relative_improvement

PaperMetrics = Mapping[str, Mapping[str, Mapping[str, float]]]
"""The paper's metrics by method, cohort and metric."""
_COLUMNS = [(cohort, metric) for cohort in COHORTS for metric in METRICS]


@dataclass(frozen=True)
class MethodRow:
    """One method of a table."""

    name: str
    base: str | None
    """The method that ``differences`` are from; None where it is a base itself, or its base is not
    in the table."""
    run_dirs: list[str]
    metrics: MetricIntervals
    relative: dict[str, dict[str, float | None]]
    """RI in percent (Eq. 18), by cohort and metric."""
    differences: MetricIntervals
    controls: Mapping[str, MetricIntervals]
    """Differences from the controls of the method that are in the table, by their names."""
    headroom: Interval | None
    """Share of the oracle's gain over the base on new rows (AUC); None where that gain is not clear
    of 0."""
    verdict: str | None


@dataclass(frozen=True)
class ClaimCheck:
    """A claim of the paper, that one method is better than another for new users."""

    lower: str
    higher: str
    difference: Interval | None
    verdict: str


@dataclass(frozen=True)
class TableContent:
    """The content of a table."""

    title: str
    rows: Sequence[MethodRow]
    claims: Sequence[ClaimCheck]
    test: Mapping[str, Mapping[str, int]]
    """Numbers of test rows and users, by cohort."""
    num_seeds: int
    num_resamples: int
    cohorts_of: str = "users"
    """The cohorts are of users or items."""

    @property
    def over(self) -> str:
        """The words for what means and intervals are over."""
        return f"users and {self.num_seeds} seeds" if self.num_seeds > 1 else "users, one seed"


def format_table(content: TableContent) -> str:
    """Formats metrics, differences from each method's base, and verdicts as Markdown."""
    titles = [(f"{cohort} {metric.upper()}", "RI") for cohort, metric in _COLUMNS]
    header = ["method", *(title for pair in titles for title in pair)]
    rows = [_metric_cells(row) for row in content.rows]
    text = f"## {content.title}\n\n{_caption(content)}\n\n{markdown_table(header, rows)}\n"
    if compared := [row for row in content.rows if row.base]:
        columns = [f"{cohort} {metric.upper()}" for cohort, metric in _COLUMNS]
        header = ["difference", *columns, "headroom recovered"]
        rows = [cells for row in compared for cells in _difference_rows(row)]
        verdicts = "".join(f"- {row.verdict}\n" for row in compared)
        text += f"{markdown_table(header, rows)}\n{verdicts}"
    if content.claims:
        verdicts = "".join(f"- {claim.verdict}\n" for claim in content.claims)
        text += f"\nThe paper's order:\n\n{verdicts}"
    return text


def compare_with_paper(
    dataset: str, paper: PaperMetrics, rows: Sequence[MethodRow], reference: Mapping[str, str]
) -> str:
    """Formats our metrics beside the paper's and RI of both, a table for each cohort.

    Args:
        dataset: the paper's name of its dataset.
        paper: the paper's metrics.
        rows: our methods; those that the paper does not have are left out.
        reference: the method that RI of each method is relative to.
    """
    text = f"\nThe paper's own metrics ({dataset} dataset) beside ours:\n\n"
    for cohort in COHORTS:
        metrics = list(paper["BaseDNN"][cohort])
        titles = [(metric.upper(), "the paper's", "RI", "the paper's") for metric in metrics]
        header = [f"{cohort} users", *(title for group in titles for title in group)]
        lines = []
        for row in (row for row in rows if row.name in paper):
            base = paper[reference[row.name]][cohort]
            groups = [_beside_cells(row, paper[row.name], base, cohort, name) for name in metrics]
            lines.append([row.name, *(cell for group in groups for cell in group)])
        text += markdown_table(header, lines) + "\n"
    return text


def method_verdict(
    name: str,
    base: str,
    differences: MetricIntervals,
    controls: Mapping[str, MetricIntervals],
    headroom: Interval | None,
    cohorts_of: str = "users",
) -> str:
    """Says whether a method's gains over its base, and over its controls, are clear of 0."""
    cohorts = [
        f"{cohort} {cohorts_of} {_difference_verdict(differences[cohort]['auc'])}"
        for cohort in COHORTS
    ]
    text = f"{name} against {base}, AUC: {'; '.join(cohorts)}."
    for control, found in controls.items():
        text += f" Against {control}: new {cohorts_of} {_difference_verdict(found['new']['auc'])}."
    if headroom is not None:
        text += f" It recovers {format_share(headroom)} of the headroom."
    return text


def _difference_verdict(found: Interval | None) -> str:
    return f"{format_difference(found)}, {classify_difference(found)}"


def claim_verdict(lower: str, higher: str, difference: Interval | None) -> str:
    """Says whether a claim of the paper holds."""
    words = {
        "a gain": "so it is",
        "a loss": "it is the other way round",
        "none": "cannot be told",
        "unknown": "cannot be told",
    }
    word = words[classify_difference(difference)]
    return f"{lower} < {higher} for new users, AUC {format_difference(difference)}: {word}."


def classify_difference(interval: Interval | None) -> str:
    """Returns "a gain" or "a loss" where the interval is clear of 0, else "none"."""
    if interval is None or interval.low is None or interval.high is None:
        return "unknown"
    return "a gain" if interval.low > 0 else "a loss" if interval.high < 0 else "none"


def format_difference(interval: Interval | None) -> str:
    """Formats a difference as ``+.0012 [+.0003, +.0021]``."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return _number(interval.mean, "+")
    mean, low, high = (
        _number(value, "+") for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}]"


def format_share(interval: Interval | None) -> str:
    """Formats a share as ``12 % [3 %, 21 %]``."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean * 100:.0f} %"
    return f"{interval.mean * 100:.0f} % [{interval.low * 100:.0f} %, {interval.high * 100:.0f} %]"


def format_mean(interval: Interval | None) -> str:
    """Formats the mean of a metric as ``.7128``."""
    return _number(interval.mean) if interval else "-"


def _caption(content: TableContent) -> str:
    """Says which rows the metrics are of, and what the intervals mean."""
    rows = ", ".join(
        f"{counts['rows']:,} rows of {counts['users']:,} {cohort} users"
        if content.cohorts_of == "users"
        else f"{counts['rows']:,} rows of {cohort} items, of {counts['users']:,} users"
        for cohort, counts in content.test.items()
    )
    several = f"Means over {content.num_seeds} seeds"
    one = "One seed, so that intervals hold what users vary and not what seeds do"
    return (
        f"Test: {rows}. {several if content.num_seeds > 1 else one}; 95 % intervals in brackets, "
        f"by a paired bootstrap over users and seeds ({content.num_resamples} resamples). "
        'A difference whose interval holds 0 is called "none".'
    )


def _metric_cells(row: MethodRow) -> list[str]:
    cells = [
        (format_mean(row.metrics[cohort][metric]), _percent(row.relative[cohort][metric]))
        for cohort, metric in _COLUMNS
    ]
    return [row.name, *(cell for pair in cells for cell in pair)]


def _difference_rows(row: MethodRow) -> list[list[str]]:
    """Formats the differences from the base and its headroom, then those from each control."""
    differences = {str(row.base): row.differences} | dict(row.controls)
    rows = [
        [
            f"{row.name} - {name}",
            *(format_difference(of_name[cohort][metric]) for cohort, metric in _COLUMNS),
            "",
        ]
        for name, of_name in differences.items()
    ]
    rows[0][-1] = format_share(row.headroom)
    return rows


def _beside_cells(
    row: MethodRow,
    paper: Mapping[str, Mapping[str, float]],
    base: Mapping[str, float],
    cohort: str,
    metric: str,
) -> list[str]:
    """Formats our mean, the paper's, our RI and the paper's, of one metric."""
    theirs = paper[cohort][metric]
    return [
        format_mean(row.metrics[cohort][metric]),
        _number(theirs),
        _percent(row.relative[cohort][metric]),
        _percent(relative_improvement(theirs, base[metric])),
    ]


def _percent(relative: float | None) -> str:
    return "-" if relative is None else f"{relative:+.2f} %"


def _number(value: float, sign: str = "") -> str:
    """Formats four digits, without the zero in front."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)
