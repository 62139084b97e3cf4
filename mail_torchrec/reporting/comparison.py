"""Compares finished runs: methods by new, old and all users, over seeds and against a base.

Runs whose configurations have one ``name`` are seeds of one method.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mail_torchrec.reporting.cohorts import COHORT_NAMES, COHORTS
from mail_torchrec.reporting.compared_runs import (
    METRICS,
    ComparedRun,
    check_seeds,
    data_differences,
    read_compared_run,
    shared_cohorts,
)
from mail_torchrec.reporting.intervals import Interval, seed_interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_OF_PROBABILITIES = ("log_loss", "normalised_entropy", "calibration")
FURTHER_METRICS = {
    "probabilities": _OF_PROBABILITIES,
    "pCVR of clicked rows": ("cvr_auc", "cvr_gauc"),
    "probabilities of pCVR": tuple(f"cvr_{name}" for name in _OF_PROBABILITIES),
    "pCTCVR": ("ctcvr_auc", "ctcvr_gauc"),
    "probabilities of pCTCVR": tuple(f"ctcvr_{name}" for name in _OF_PROBABILITIES),
}
"""Further tables and their metrics; shown where all runs have them (older runs have no
probabilities, and pCVR and pCTCVR are the multi-task head's)."""

MetricIntervals = dict[str, dict[str, Interval | None]]
"""Interval by cohort (new, old, all) and metric (auc, gauc, ...); None where a run has none."""


@dataclass(frozen=True)
class MethodResult:
    """The metrics of one method over its seeds."""

    name: str
    run_dirs: list[str]
    metrics: MetricIntervals
    base: str | None = None
    """The method that ``differences`` are from."""
    differences: MetricIntervals = field(default_factory=dict)
    """Mean and interval of this method minus the base, paired by seed; empty where the two do not
    have the same seeds."""
    other_data: list[str] = field(default_factory=list)
    """Differences of its rows from those of the first run, for which its metrics cannot be
    compared; they were allowed."""

    @property
    def title(self) -> str:
        """Name for tables and plots; marked where the metrics cannot be compared."""
        return f"{self.name} *" if self.other_data else self.name


def compare(
    run_dirs: Iterable[Path],
    base: str | None = None,
    *,
    names: Mapping[Path, str] | None = None,
    allow_different_data: bool = False,
) -> list[MethodResult]:
    """Reads finished runs and averages the seeds of each method.

    Args:
        run_dirs: directories of finished runs.
        base: the method from which the others' differences are taken, paired by ``train.seed``;
            none by default.
        names: names of methods, by run, in place of those in the runs' configurations.
        allow_different_data: mark methods whose rows differ from those of the first run instead of
            refusing them.

    Returns:
        One result a method, in the order in which the methods came.

    Raises:
        ValueError: no runs, an unfinished or damaged one, one of another format, two runs of one
            method and seed, runs of one method that differ in more than the seed, runs evaluated on
            other rows, or no run called ``base``.
    """
    given = dict(names or {})
    runs = [read_compared_run(path, given.pop(path, None)) for path in map(Path, run_dirs)]
    if given:
        raise ValueError(
            f"--name should name one of the run directories {[str(run.path) for run in runs]}, "
            f"received '{next(iter(given))}'"
        )
    methods: dict[str, list[ComparedRun]] = {}
    for run in runs:
        methods.setdefault(run.name, []).append(run)
    if not methods:
        raise ValueError("compare: there should be at least one run directory, received none")
    if base is not None and base not in methods:
        raise ValueError(
            f"compare: base should be one of the methods {list(methods)}, received '{base}'"
        )
    for of_method in methods.values():
        check_seeds(of_method)
    if not allow_different_data:
        _check_data(runs, methods)
    if not any(run.metrics["new"].get("rows") for run in runs):
        logger.warning(
            "no test row of these runs is a new user's: nothing is compared for new users"
        )
    metrics, cohorts = _shared_metrics(runs), shared_cohorts(runs)
    base_runs = methods[base] if base is not None else []
    return [
        replace(
            _method_result(of_method, metrics, cohorts, base_runs if name != base else []),
            other_data=_other_data(runs[0], of_method),
        )
        for name, of_method in methods.items()
    ]


def _check_data(runs: list[ComparedRun], methods: dict[str, list[ComparedRun]]) -> None:
    """Refuses runs whose rows are not those of the first run, or of their method's first one."""
    for run in runs:
        for first in (runs[0], methods[run.name][0]):
            if lines := data_differences(first, run):
                raise ValueError(
                    f"'{first.path}' ({first.name}) and '{run.path}' ({run.name}) have other rows, "
                    "so their metrics cannot be compared; train them on the same data, or add "
                    "--allow-different-data, which marks the table:\n  " + "\n  ".join(lines)
                )


def _other_data(first: ComparedRun, of_method: list[ComparedRun]) -> list[str]:
    """Lists the differences of a method's rows, each behind its run."""
    return [
        f"{run.path}: {line}"
        for run in of_method
        for line in dict.fromkeys(
            [*data_differences(first, run), *data_differences(of_method[0], run)]
        )
    ]


def _shared_metrics(runs: list[ComparedRun]) -> list[str]:
    """Lists the metrics that all runs have."""
    further = [metric for of_table in FURTHER_METRICS.values() for metric in of_table]
    further += [metric for metric in runs[0].metrics["all"] if _is_of_task(metric)]
    shared = [
        metric
        for metric in further
        if all(metric in run.metrics[cohort] for run in runs for cohort in COHORTS)
    ]
    return [*METRICS, *shared]


def _is_of_task(metric: str) -> bool:
    """Returns whether a metric is one of ``model.tasks``, ``buy/auc``."""
    return "/" in metric and not metric.endswith(("/rows", "/mean"))


def _method_result(
    runs: list[ComparedRun],
    metrics: list[str],
    cohorts: list[str],
    base_runs: list[ComparedRun],
) -> MethodResult:
    """Averages a method's runs; differences are taken where the base has the same seeds."""
    run_dirs = [str(run.path) for run in runs]
    means = _intervals([run.metrics for run in runs], metrics, cohorts)
    of_seed = {run.seed: run for run in base_runs}
    if not base_runs or {run.seed for run in runs} != set(of_seed):
        return MethodResult(runs[0].name, run_dirs, means)
    differences = [_subtract(run, of_seed[run.seed], metrics, cohorts) for run in runs]
    return MethodResult(
        runs[0].name, run_dirs, means, base_runs[0].name, _intervals(differences, metrics, cohorts)
    )


def _intervals(
    seeds: Sequence[dict[str, dict[str, float | None]]], metrics: list[str], cohorts: list[str]
) -> MetricIntervals:
    return {
        cohort: {
            metric: seed_interval([seed[cohort][metric] for seed in seeds]) for metric in metrics
        }
        for cohort in cohorts
    }


def _subtract(
    run: ComparedRun, base: ComparedRun, metrics: list[str], cohorts: list[str]
) -> dict[str, dict[str, float | None]]:
    return {
        cohort: {
            metric: _difference(run.metrics[cohort][metric], base.metrics[cohort][metric])
            for metric in metrics
        }
        for cohort in cohorts
    }


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def as_markdown(results: Sequence[MethodResult]) -> str:
    """Formats the metrics as Markdown tables, differences in a second one where there are any.

    A cell is ``mean`` for one seed, ``mean ± half width of the 95 % interval`` for several, ``-``
    where a metric is undefined. Tables of ``FURTHER_METRICS`` and of tasks follow where all runs
    have them, and one by new and old items. A star marks methods whose rows differ from the first
    run's; the differences follow.
    """
    predictions = {"": METRICS} | {
        f", {prediction}": metrics
        for prediction, metrics in FURTHER_METRICS.items()
        if set(metrics) <= results[0].metrics["all"].keys()
    }
    for metric in filter(_is_of_task, results[0].metrics["all"]):
        title = f", task {metric.partition('/')[0]}"
        predictions[title] = (*predictions.get(title, ()), metric)
    tables = [_tables(results, title, metrics, COHORTS) for title, metrics in predictions.items()]
    if items := [name for name in results[0].metrics if name not in COHORTS]:
        tables.insert(1, _tables(results, ", by items", METRICS, items))
    texts = [table for pair in tables for table in pair]
    if lines := [f"- {line}" for result in results for line in result.other_data]:
        note = f"\\* Other rows than those of {results[0].run_dirs[0]}: not comparable."
        texts.append("\n".join([note, "", *lines, ""]))
    return "\n".join(texts)


def _tables(
    results: Sequence[MethodResult], title: str, metrics: tuple[str, ...], cohorts: Sequence[str]
) -> list[str]:
    """Formats the metrics of one prediction, and their differences where there are any."""
    words = {name: name if name in COHORTS else COHORT_NAMES[name] for name in cohorts}
    columns = [f"{words[name]} {_column_name(metric)}" for name in cohorts for metric in metrics]
    header = ["seeds", *columns]
    rows = [
        [result.title, str(len(result.run_dirs)), *_cells(result.metrics, metrics, cohorts, "")]
        for result in results
    ]
    tables = [markdown_table([f"method{title}", *header], rows)]
    if compared := [result for result in results if result.differences]:
        rows = [
            [
                f"{result.title} - {result.base}",
                str(len(result.run_dirs)),
                *_cells(result.differences, metrics, cohorts, "+"),
            ]
            for result in compared
        ]
        tables.append(markdown_table([f"difference, paired by seed{title}", *header], rows))
    return tables


def _column_name(metric: str) -> str:
    """Returns the name of a metric in a table whose title names the prediction."""
    name = metric.rpartition("/")[2].removeprefix("ctcvr_").removeprefix("cvr_")
    return name.upper() if name in METRICS else name.replace("_", " ")


def _cells(
    intervals: MetricIntervals, metrics: tuple[str, ...], cohorts: Sequence[str], sign: str
) -> list[str]:
    return [_cell(intervals[cohort][metric], sign) for cohort in cohorts for metric in metrics]


def _cell(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:{sign}.4f}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width:.4f}"


def as_json(results: Sequence[MethodResult]) -> str:
    """Formats the results as a JSON list of methods, null where a metric is undefined."""
    return json.dumps([asdict(result) for result in results], indent=2, allow_nan=False) + "\n"
