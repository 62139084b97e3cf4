"""Estimates 95 % intervals of metrics by a paired bootstrap over users and seeds.

A metric of one method varies with the users who happened to be tested and with the seeds that
happened to be trained. A resample draws both anew: users with replacement, all rows of a user
together, the same users for every method and seed; and seeds by normal multipliers, the same for
every method. Differences are taken inside a resample, so what two methods share cancels.

Drawing a handful of seeds with replacement would make intervals too narrow (five seeds: about 83 %
instead of 95 %). The multipliers are scaled so that, where users do not matter, the interval is
Student's t-interval over the seeds.

Shape letters: ``S`` seeds, ``B`` the data as it is, then the resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reporting.compared_runs import METRICS
from mail_torchrec.reporting.comparison import MetricIntervals
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.resampling import bootstrap_run, seed_weights_SB
from mail_torchrec.utils.progress import progress_bar

NUM_RESAMPLES = 1000
COHORTS = {"new": True, "old": False}
"""Cohort of rows, and whether its users (or items) are new."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BootstrappedMetric:
    """A metric of one method for each seed, on the data and on each resample of the users.

    Args:
        values_SB: the first column is of the data.
    """

    values_SB: Floats

    def mean_over_seeds_B(self) -> Floats:
        """Computes the mean over seeds ``[B]`` of the data, then over each resample's seeds."""
        num_seeds, num_columns = self.values_SB.shape
        weights_SB = seed_weights_SB(num_seeds, num_columns - 1)
        means_B: Floats = np.einsum("sb,sb->b", weights_SB, self.values_SB)
        return means_B

    def interval(self) -> Interval | None:
        """Computes the mean and its 95 % interval; None where the metric is undefined."""
        return _percentile_interval(self.mean_over_seeds_B(), len(self.values_SB))


BootstrappedMetrics = dict[str, dict[str, BootstrappedMetric]]
"""Metrics of one method, by cohort (new, old) and metric (auc, gauc)."""


def bootstrap(
    runs: Mapping[str, Iterable[Predictions]], num_resamples: int = NUM_RESAMPLES
) -> dict[str, BootstrappedMetrics]:
    """Bootstraps the metrics of all methods.

    Args:
        runs: predictions of each method, one a seed, in the same order of seeds for every method.
            They are read one at a time.
        num_resamples: number of times that users and seeds are drawn anew.

    Raises:
        ValueError: runs of other rows than the first, or not one run a seed for every method.
    """
    first: tuple[str, Predictions] | None = None
    metrics: dict[str, BootstrappedMetrics] = {}
    num_seeds: dict[str, int] = {}
    for name, of_method in runs.items():
        seeds = []
        for run in of_method:
            first = first or (name, run)
            _check_same_rows(name, run, *first)
            seeds.append(_bootstrap_cohorts(run, num_resamples))
        num_seeds[name] = len(seeds)
        metrics[name] = _stack_seeds(seeds)
    if len(set(num_seeds.values())) > 1:
        raise ValueError(
            f"each method should have the same seeds, received so many runs: {num_seeds}"
        )
    return metrics


def bootstrap_files(
    files: Mapping[str, Sequence[Path]],
    num_resamples: int = NUM_RESAMPLES,
    *,
    of_items: bool = False,
) -> dict[str, BootstrappedMetrics]:
    """Bootstraps predictions in folders, one a seed; reads one at a time, with a progress bar.

    Args:
        files: folders of each method.
        num_resamples: number of times that users and seeds are drawn anew.
        of_items: the cohorts are the rows of new and old items, in place of users.
    """
    num_files = sum(map(len, files.values()))
    bar: tqdm[Path] = progress_bar(total=num_files, desc="resampling", unit="run")

    def load(path: Path) -> Predictions:
        bar.update()
        return Predictions.load(path, of_items=of_items)

    with bar:
        return bootstrap({name: map(load, paths) for name, paths in files.items()}, num_resamples)


def paired_difference(method: BootstrappedMetric, base: BootstrappedMetric) -> Interval | None:
    """Computes method minus base, users and seeds paired; None where a metric is undefined."""
    return _subtract(method, base).interval()


def metric_differences(method: BootstrappedMetrics, base: BootstrappedMetrics) -> MetricIntervals:
    """Computes method minus base of every cohort and metric, users and seeds paired."""
    return {
        cohort: {
            metric: paired_difference(method[cohort][metric], base[cohort][metric])
            for metric in METRICS
        }
        for cohort in COHORTS
    }


def headroom_recovered(
    method: BootstrappedMetric, base: BootstrappedMetric, oracle: BootstrappedMetric
) -> Interval | None:
    """Computes (method - base) / (oracle - base), a ratio of means over seeds.

    Returns:
        None where the oracle is not clearly above the base: there is nothing to recover, and the
        ratio would be noise.
    """
    headroom = paired_difference(oracle, base)
    if headroom is None:
        return None
    if not (headroom.mean if headroom.low is None else headroom.low) > 0:
        return None
    gain_B = _subtract(method, base).mean_over_seeds_B()
    headroom_B = _subtract(oracle, base).mean_over_seeds_B()
    return _percentile_interval(gain_B / headroom_B, len(method.values_SB))


def relative_improvement(method: float, base: float) -> float:
    """Computes RI of Eq. 18, in percent."""
    return (method - base) / base * 100


def _bootstrap_cohorts(run: Predictions, num_resamples: int) -> dict[str, dict[str, Floats]]:
    return {
        cohort: bootstrap_run(run.cohort(is_new=is_new), num_resamples)
        for cohort, is_new in COHORTS.items()
    }


def _stack_seeds(seeds: Sequence[Mapping[str, Mapping[str, Any]]]) -> BootstrappedMetrics:
    return {
        cohort: {
            metric: BootstrappedMetric(np.stack([seed[cohort][metric] for seed in seeds]))
            for metric in METRICS
        }
        for cohort in COHORTS
    }


def _subtract(method: BootstrappedMetric, base: BootstrappedMetric) -> BootstrappedMetric:
    return BootstrappedMetric(method.values_SB - base.values_SB)


def _percentile_interval(values_B: Floats, num_seeds: int) -> Interval | None:
    """Takes the mean from the first column, the ends from the percentiles of the others."""
    if np.isnan(values_B[0]):
        return None
    mean = float(values_B[0])
    if len(values_B) == 1:
        return Interval(mean, None, None, num_seeds)
    # A resample may lack one class where users are very few: its metric is nan.
    low, high = np.nanquantile(values_B[1:], [0.025, 0.975])
    return Interval(mean, float(low), float(high), num_seeds)


def _check_same_rows(name: str, run: Predictions, first_name: str, first: Predictions) -> None:
    for column in ("labels_R", "users_R", "is_new_R"):
        if not np.array_equal(getattr(run, column), getattr(first, column)):
            raise ValueError(
                f"'{name}' was evaluated on other rows than '{first_name}' ({column[:-2]} differ); "
                "the test data changed between runs"
            )
