"""Makes a curve of finished runs: gains, controls and headroom of each method at each point."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.compared_runs import METRICS
from mail_torchrec.reporting.comparison import MetricIntervals
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.bootstrap import (
    COHORTS,
    BootstrappedMetrics,
    bootstrap_files,
    headroom_recovered,
    metric_differences,
)
from mail_torchrec.reproduce.curves.curve_plot import draw_curve
from mail_torchrec.reproduce.curves.curve_text import curve_verdicts, format_curve
from mail_torchrec.reproduce.curves.plan import CurvePlan
from mail_torchrec.reproduce.curves.points import Axis
from mail_torchrec.reproduce.curves.values import CurveContent, CurveValue
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.sections import ReportSection

NUM_RESAMPLES = 400
"""Of the bootstrap: fewer than a table's, of many times as many runs."""
_TITLES = {
    Axis.SHARE: "Curve: what cold-start methods win, by the share of cold training users",
    Axis.ROWS: "Curve: what cold-start methods win, by the number of training rows",
}
_OVER = {Axis.SHARE: "share of training users hidden", Axis.ROWS: "number of training rows"}


def make_curve(plan: CurvePlan, out: Path, num_resamples: int = NUM_RESAMPLES) -> ReportSection:
    """Makes a curve of finished trainings; its plots are written into ``out``.

    Args:
        plan: the trainings.
        out: a folder.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    values = _values(plan, _bootstrap(plan, num_resamples))
    num_seeds = len(next(iter(plan.trainings.values())))
    content = CurveContent(
        _TITLES[plan.axis],
        _OVER[plan.axis],
        {point.name: point.title for point in plan.points},
        list(plan.methods),
        values,
        num_seeds,
        num_resamples,
    )
    plots = {}
    for tower in dict.fromkeys(METHODS[name].tower for name in plan.methods):
        file = f"{plan.axis}-{METHODS[tower].file_name}.png"
        if draw_curve(content, tower, out / file):
            plots[file] = f"{tower}: {content.caption}"
    verdicts = curve_verdicts(content)
    text = format_curve(content, verdicts)
    return ReportSection(plan.axis, content.title, text, verdicts, plots, _record(content))


def _record(content: CurveContent) -> dict[str, Any]:
    values = [asdict(value) for value in content.values.values()]
    return {
        "over": content.over,
        "points": content.points,
        "seeds": content.num_seeds,
        "resamples": content.num_resamples,
        "values": values,
    }


def _bootstrap(
    plan: CurvePlan, num_resamples: int
) -> Mapping[tuple[str, str], BootstrappedMetrics]:
    """Bootstraps every training once, by point and method."""
    folders = {
        key: tuple(job.run_dir.predictions for job in seeds)
        for key, seeds in plan.trainings.items()
    }
    names = {files: f"{method}, {point}" for (point, method), files in folders.items()}
    metrics = bootstrap_files({name: files for files, name in names.items()}, num_resamples)
    return {key: metrics[names[files]] for key, files in folders.items()}


def _values(
    plan: CurvePlan, metrics: Mapping[tuple[str, str], BootstrappedMetrics]
) -> dict[tuple[str, str], CurveValue]:
    found = {}
    for point in plan.points:
        of_point = {name: metrics[point.name, name] for name in plan.methods}
        of_point |= _best_bases(plan, metrics)
        for method in plan.methods:
            found[point.name, method] = _value(point.name, method, of_point)
    return found


def _best_bases(
    plan: CurvePlan, metrics: Mapping[tuple[str, str], BootstrappedMetrics]
) -> dict[str, BootstrappedMetrics]:
    """Finds the bases at the share that is best for their new users.

    To hide more training users is a remedy too, which costs nothing but what old users lose.
    """
    if plan.axis is not Axis.SHARE or len(plan.points) == 1:
        return {}
    found = {}
    bases = {METHODS[name].base for name in plan.methods}
    for name in plan.methods:
        if name in bases:
            known = [(_new_auc(metrics[point.name, name]), point) for point in plan.points]
            best = max(known, key=lambda pair: pair[0])[1]
            found[_best_base(name)] = metrics[best.name, name]
    return found


def _best_base(name: str) -> str:
    return f"{name} at its best share"


def _new_auc(metrics: BootstrappedMetrics) -> float:
    interval = metrics["new"]["auc"].interval()
    return -1.0 if interval is None else interval.mean


def _value(point: str, name: str, metrics: Mapping[str, BootstrappedMetrics]) -> CurveValue:
    """Computes the values of one method at one point from those of all methods there."""
    method, own = METHODS[name], metrics[name]
    intervals: MetricIntervals = {
        cohort: {metric: own[cohort][metric].interval() for metric in METRICS} for cohort in COHORTS
    }
    base = [method.base] if method.base else []
    best = [] if method.is_oracle else [_best_base(name) for name in base]
    references = [*base, *method.controls, *best]
    differences = {
        reference: metric_differences(own, metrics[reference])
        for reference in references
        if reference in metrics
    }
    return CurveValue(point, name, intervals, differences, _headroom(name, metrics))


def _headroom(name: str, metrics: Mapping[str, BootstrappedMetrics]) -> Interval | None:
    method = METHODS[name]
    base = method.base
    if base is None or not {base, method.oracle} <= metrics.keys() - {name}:
        return None
    own, plain, oracle = (metrics[each]["new"]["auc"] for each in (name, base, method.oracle))
    return headroom_recovered(own, plain, oracle)
