"""Makes tables of finished runs: methods by new and old users or items, gains over their base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.compared_runs import METRICS
from mail_torchrec.reporting.comparison import MethodResult, MetricIntervals
from mail_torchrec.reporting.comparison_plot import draw_comparison
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.bootstrap import (
    COHORTS,
    NUM_RESAMPLES,
    BootstrappedMetrics,
    bootstrap_files,
    headroom_recovered,
    metric_differences,
    paired_difference,
    relative_improvement,
)
from mail_torchrec.reproduce.jobs import TrainingJob, group_by_method
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.paper import paper_metrics
from mail_torchrec.reproduce.sections import ReportSection
from mail_torchrec.reproduce.table_text import (
    ClaimCheck,
    MethodRow,
    TableContent,
    claim_verdict,
    compare_with_paper,
    format_table,
    method_verdict,
)

Bootstrapped = Mapping[str, BootstrappedMetrics]
"""Metrics of each method."""


@dataclass(frozen=True)
class TableSettings:
    """The title, reference, claims and cohorts of a table."""

    title: str
    reference: str | None = None
    """The method that RI is relative to; None: each one's base."""
    claims: tuple[tuple[str, str], ...] = ()
    """Claims of the paper: pairs of methods, the second one better for new users."""
    of_items: bool = False
    """Its cohorts are the rows of new and of old items, in place of users."""

    @property
    def cohorts_of(self) -> str:
        """Name of what the cohorts are of."""
        return "items" if self.of_items else "users"


TABLES = {
    "table2": TableSettings("Table 2: methods"),
    "table3": TableSettings(
        "Table 3: ablation of the zero-shot losses",
        reference="MAIL-BaseDNN",
        claims=(
            ("MAIL-None", "BaseDNN"),
            ("MAIL-Single", "MAIL-Dual"),
            ("MAIL-Dual", "MAIL-BaseDNN"),
        ),
    ),
    "items": TableSettings("New items: what can stand in for their ids", of_items=True),
}


def make_table(
    name: str,
    jobs: Sequence[TrainingJob],
    out: Path,
    dataset: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> ReportSection:
    """Makes a table of finished runs; its plot is written into ``out``.

    Args:
        name: ``table2``, ``table3`` or ``items``.
        jobs: trainings of all methods, the same seeds of each.
        out: a folder.
        dataset: the paper's dataset (public, industrial) whose own metrics are shown too; None
            shows none.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    content = _table_content(TABLES[name], jobs, num_resamples)
    results = [MethodResult(row.name, row.run_dirs, row.metrics) for row in content.rows]
    of = content.cohorts_of
    draw_comparison(results, out / f"{name}.png", over=content.over, cohorts_of=of)
    text = format_table(content)
    paper = paper_metrics(name, dataset) if dataset else None
    if dataset and paper:
        reference = {method: _reference(method, TABLES[name]) for method in paper}
        text += compare_with_paper(dataset, paper, content.rows, reference)
    verdicts = [row.verdict for row in content.rows if row.verdict]
    verdicts += [claim.verdict for claim in content.claims]
    caption = f"AUC of new and of old {of}, mean and 95 % interval over {content.over}."
    plots = {f"{name}.png": f"{content.title}. {caption}"}
    record = _record(name, content) | {"paper": {dataset: paper} if dataset else None}
    return ReportSection(name, content.title, text, verdicts, plots, record)


def _record(name: str, content: TableContent) -> dict[str, Any]:
    return {
        "table": name,
        "seeds": content.num_seeds,
        "resamples": content.num_resamples,
        "test": content.test,
        "methods": [asdict(row) for row in content.rows],
        "order": [asdict(claim) for claim in content.claims],
    }


def _table_content(
    settings: TableSettings, jobs: Sequence[TrainingJob], num_resamples: int
) -> TableContent:
    by_method = group_by_method(jobs)
    files = {
        method: [job.run_dir.predictions for job in seeds] for method, seeds in by_method.items()
    }
    bootstrapped = bootstrap_files(files, num_resamples, of_items=settings.of_items)
    rows = [
        _method_row(method, [str(job.path) for job in seeds], bootstrapped, settings)
        for method, seeds in by_method.items()
    ]
    claims = [
        _check_claim(lower, higher, bootstrapped)
        for lower, higher in settings.claims
        if {lower, higher} <= bootstrapped.keys()
    ]
    num_seeds = len(next(iter(by_method.values())))
    test = _count_test_rows(jobs[0], settings.of_items)
    return TableContent(
        settings.title, rows, claims, test, num_seeds, num_resamples, settings.cohorts_of
    )


def _count_test_rows(job: TrainingJob, of_items: bool) -> dict[str, dict[str, int]]:
    """Reads the numbers of test rows and users of each cohort."""
    metrics = json.loads(job.run_dir.metrics.read_text())
    suffix = "_items" if of_items else ""
    return {
        cohort: {name: int(metrics[f"{cohort}{suffix}"][name]) for name in ("rows", "users")}
        for cohort in COHORTS
    }


def _reference(method: str, settings: TableSettings) -> str:
    """Returns the method that RI of a method is relative to."""
    return settings.reference or METHODS[method].tower


def _method_row(
    name: str, run_dirs: list[str], bootstrapped: Bootstrapped, settings: TableSettings
) -> MethodRow:
    method, own = METHODS[name], bootstrapped[name]
    metrics: MetricIntervals = {
        cohort: {metric: own[cohort][metric].interval() for metric in METRICS} for cohort in COHORTS
    }
    relative = _relative_improvements(own, bootstrapped.get(_reference(name, settings)))
    base = bootstrapped.get(method.tower)
    if base is None or method.base is None:
        return MethodRow(name, None, run_dirs, metrics, relative, {}, {}, None, None)
    differences = metric_differences(own, base)
    controls = {
        control: metric_differences(own, bootstrapped[control])
        for control in method.controls
        if control in bootstrapped
    }
    headroom = _headroom(name, bootstrapped)
    verdict = method_verdict(
        name, method.base, differences, controls, headroom, settings.cohorts_of
    )
    return MethodRow(
        name, method.base, run_dirs, metrics, relative, differences, controls, headroom, verdict
    )


def _headroom(name: str, bootstrapped: Bootstrapped) -> Interval | None:
    """Computes the share of the oracle's gain in new users' AUC; None without the oracle."""
    method = METHODS[name]
    if method.oracle not in bootstrapped or name == method.oracle:
        return None
    own, base, oracle = (
        bootstrapped[each]["new"]["auc"] for each in (name, method.tower, method.oracle)
    )
    return headroom_recovered(own, base, oracle)


def _relative_improvements(
    own: BootstrappedMetrics, reference: BootstrappedMetrics | None
) -> dict[str, dict[str, float | None]]:
    def relative(cohort: str, metric: str) -> float | None:
        value = own[cohort][metric].interval()
        base = reference[cohort][metric].interval() if reference else None
        return relative_improvement(value.mean, base.mean) if value and base else None

    return {cohort: {metric: relative(cohort, metric) for metric in METRICS} for cohort in COHORTS}


def _check_claim(lower: str, higher: str, bootstrapped: Bootstrapped) -> ClaimCheck:
    found = paired_difference(bootstrapped[higher]["new"]["auc"], bootstrapped[lower]["new"]["auc"])
    return ClaimCheck(lower, higher, found, claim_verdict(lower, higher, found))
