"""Compares finished runs: methods by new, old and all users, over seeds and against a base.

A run directory holds ``metrics.json`` and ``config.yaml``; runs whose configurations have one
``name`` are seeds of one method.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mail_torchrec.reporting.intervals import Interval, seed_interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.formats import check_run_format

COHORTS = ("new", "old", "all")
METRICS = ("auc", "gauc")
CONVERSION_METRICS = {
    "pCVR of clicked rows": ("cvr_auc", "cvr_gauc"),
    "pCTCVR": ("ctcvr_auc", "ctcvr_gauc"),
}
"""Prediction of the multi-task head, and its metrics; shown where all runs have them."""

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


@dataclass(frozen=True)
class _FinishedRun:
    path: Path
    name: str
    seed: int | None
    metrics: dict[str, dict[str, float | None]]


def compare(run_dirs: Iterable[Path], base: str | None = None) -> list[MethodResult]:
    """Reads finished runs and averages the seeds of each method.

    Args:
        run_dirs: directories of finished runs.
        base: the method from which the others' differences are taken, paired by ``train.seed``;
            none by default.

    Returns:
        One result a method, in the order in which the methods came.

    Raises:
        ValueError: no runs, an unfinished or damaged one, one of another format, two runs of one
            method and seed, or no run called ``base``.
    """
    methods: dict[str, list[_FinishedRun]] = {}
    for run_dir in run_dirs:
        run = _read_run(Path(run_dir))
        methods.setdefault(run.name, []).append(run)
    if not methods:
        raise ValueError("compare: there should be at least one run directory, received none")
    if base is not None and base not in methods:
        raise ValueError(
            f"compare: base should be one of the methods {list(methods)}, received '{base}'"
        )
    for name, runs in methods.items():
        _check_seeds(name, runs)
    names = _shared_metrics([run for runs in methods.values() for run in runs])
    base_runs = methods[base] if base is not None else []
    return [
        _method_result(runs, names, base_runs if name != base else [])
        for name, runs in methods.items()
    ]


def _shared_metrics(runs: list[_FinishedRun]) -> list[str]:
    """Lists the metrics that all runs have."""
    of_conversions = [metric for pair in CONVERSION_METRICS.values() for metric in pair]
    shared = [
        metric
        for metric in of_conversions
        if all(metric in run.metrics[cohort] for run in runs for cohort in COHORTS)
    ]
    return [*METRICS, *shared]


def _read_run(run_dir: Path) -> _FinishedRun:
    config = _read_mapping(run_dir, "config.yaml", "is this a run directory?")
    check_run_format(run_dir)
    metrics = _read_mapping(
        run_dir, "metrics.json", "the run has not finished, or was stopped; train it again"
    )
    if missing := [cohort for cohort in COHORTS if not _has_metrics(metrics.get(cohort))]:
        raise ValueError(
            f"'{run_dir / 'metrics.json'}' should hold auc and gauc of new, old and all rows, "
            f"missing or incomplete: {missing}"
        )
    name, train = config.get("name"), config.get("train")
    if not isinstance(name, str):
        raise ValueError(
            f"'{run_dir / 'config.yaml'}' should have a text as its 'name', received {name!r}"
        )
    seed = train.get("seed") if isinstance(train, dict) else None
    return _FinishedRun(run_dir, name, seed, metrics)


def _has_metrics(cohort: object) -> bool:
    return isinstance(cohort, dict) and set(METRICS) <= set(cohort)


def _read_mapping(run_dir: Path, name: str, hint: str) -> dict[str, Any]:
    """Reads a JSON or YAML mapping (every JSON text is YAML, too)."""
    try:
        content = yaml.safe_load((run_dir / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"'{run_dir}' has no {name}; {hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"'{run_dir / name}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"'{run_dir / name}' should hold a mapping, received {type(content).__name__}"
        )
    return content


def _check_seeds(name: str, runs: list[_FinishedRun]) -> None:
    first: dict[int | None, Path] = {}
    for run in runs:
        if run.seed in first:
            raise ValueError(
                f"'{run.path}' and '{first[run.seed]}' are both method '{name}', seed {run.seed}; "
                "give another method another name=..., another seed another train.seed=..., or "
                "pass one of the two"
            )
        first[run.seed] = run.path


def _method_result(
    runs: list[_FinishedRun], metrics: list[str], base_runs: list[_FinishedRun]
) -> MethodResult:
    """Averages a method's runs; differences are taken where the base has the same seeds."""
    run_dirs = [str(run.path) for run in runs]
    means = _intervals([run.metrics for run in runs], metrics)
    of_seed = {run.seed: run for run in base_runs}
    if not base_runs or {run.seed for run in runs} != set(of_seed):
        return MethodResult(runs[0].name, run_dirs, means)
    differences = [_subtract(run, of_seed[run.seed], metrics) for run in runs]
    return MethodResult(
        runs[0].name, run_dirs, means, base_runs[0].name, _intervals(differences, metrics)
    )


def _intervals(
    seeds: Sequence[dict[str, dict[str, float | None]]], metrics: list[str]
) -> MetricIntervals:
    return {
        cohort: {
            metric: seed_interval([seed[cohort][metric] for seed in seeds]) for metric in metrics
        }
        for cohort in COHORTS
    }


def _subtract(
    run: _FinishedRun, base: _FinishedRun, metrics: list[str]
) -> dict[str, dict[str, float | None]]:
    return {
        cohort: {
            metric: _difference(run.metrics[cohort][metric], base.metrics[cohort][metric])
            for metric in metrics
        }
        for cohort in COHORTS
    }


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def as_markdown(results: Sequence[MethodResult]) -> str:
    """Formats the metrics as Markdown tables, differences in a second one where there are any.

    A cell is ``mean`` for one seed, ``mean ± half width of the 95 % interval`` for several, ``-``
    where a metric is undefined. Where all runs predict conversions, the same tables follow for
    these.
    """
    predictions = {"": METRICS} | {
        f", {prediction}": metrics
        for prediction, metrics in CONVERSION_METRICS.items()
        if set(metrics) <= results[0].metrics["all"].keys()
    }
    tables = [_tables(results, title, metrics) for title, metrics in predictions.items()]
    return "\n".join(table for pair in tables for table in pair)


def _tables(results: Sequence[MethodResult], title: str, metrics: tuple[str, ...]) -> list[str]:
    """Formats the metrics of one prediction, and their differences where there are any."""
    columns = [f"{cohort} {metric.upper()}" for cohort in COHORTS for metric in METRICS]
    header = ["seeds", *columns]
    rows = [
        [result.name, str(len(result.run_dirs)), *_cells(result.metrics, metrics, "")]
        for result in results
    ]
    tables = [markdown_table([f"method{title}", *header], rows)]
    if compared := [result for result in results if result.differences]:
        rows = [
            [
                f"{result.name} - {result.base}",
                str(len(result.run_dirs)),
                *_cells(result.differences, metrics, "+"),
            ]
            for result in compared
        ]
        tables.append(markdown_table([f"difference, paired by seed{title}", *header], rows))
    return tables


def _cells(intervals: MetricIntervals, metrics: tuple[str, ...], sign: str) -> list[str]:
    return [_cell(intervals[cohort][metric], sign) for cohort in COHORTS for metric in metrics]


def _cell(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:{sign}.4f}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width:.4f}"


def as_json(results: Sequence[MethodResult]) -> str:
    """Formats the results as a JSON list of methods, null where a metric is undefined."""
    return json.dumps([asdict(result) for result in results], indent=2, allow_nan=False) + "\n"
