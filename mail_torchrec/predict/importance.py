"""The ``mail-torchrec importance`` command: permutation importance of features on labelled rows.

A feature's importance is what AUC and GAUC lose when its values are permuted among the rows
(Breiman 2001), for new, old and all users. Shape: ``R`` rows of a rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.data.reading.permutation import FeaturePermutation, feature_groups
from mail_torchrec.metrics.cohorts import CohortMetrics, EvaluatedRows, MetricsReport
from mail_torchrec.metrics.partitions import Partition
from mail_torchrec.predict.opened_run import OpenedRun, finished_config, open_run
from mail_torchrec.reporting.intervals import Interval, seed_interval
from mail_torchrec.train.evaluation import score_batches
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.spans import span

METRICS, COHORTS = ("auc", "gauc"), ("new", "old", "all")
_NUM_PARTS = 10
"""Parts of the users, by the hash of the group key; intervals are taken over them."""

_Metrics = Mapping[str, Mapping[str, Any]]
"""Metrics by cohort, and by part of its users."""


@dataclass(frozen=True)
class FeatureImportance:
    """Loss of each metric where one group of columns is permuted."""

    name: str
    """Feature; of a sequence with its actions the sequence."""
    columns: tuple[str, ...]
    losses: dict[str, dict[str, Interval | None]]
    """Cohort -> metric -> unpermuted minus permuted; None where the metric is undefined."""


@dataclass(frozen=True)
class ImportanceReport:
    """Importance of all features of a run, the most important one first."""

    run: str
    data: str
    num_repeats: int
    metrics: dict[str, CohortMetrics]
    """Of the rows as they are, by cohort."""
    features: list[FeatureImportance]


def importance(
    run_dir: RunDir, data: str | None, overrides: list[str], num_repeats: int
) -> ImportanceReport:
    """Computes the importance of every feature of a finished run; every rank calls it.

    All rows are scored once as they are, and ``num_repeats`` times for each feature. Values are
    permuted among the ``data.shuffle_buffer_size`` rows or more that a reader process holds at a
    time, within cohorts.

    Intervals are Student's 95 % intervals over tenths of the users, drawn by the hash of their key.

    Args:
        run_dir: the run.
        data: Parquet file or folder (or URI); None takes the run's test data.
        overrides: of its configuration.
        num_repeats: permutations of each feature.

    Raises:
        ValueError: no finished run there, or data that does not fit its schema.
    """
    with open_run(run_dir, data, finished_config(run_dir, overrides)) as run, span("importance"):
        groups = feature_groups(run.config.schema_)
        unpermuted = _metrics(run, "as they are", None)
        permuted: dict[str, list[_Metrics]] = {name: [] for name in groups}
        for name, repeat in product(groups, range(num_repeats)):
            seed = run.config.train.seed, list(groups).index(name), repeat
            permutation = FeaturePermutation(groups[name], seed)
            title = f"{name} {repeat + 1}/{num_repeats}"
            permuted[name].append(_metrics(run, title, permutation))
        features = [
            FeatureImportance(name, groups[name], _losses(unpermuted, permuted[name]))
            for name in groups
        ]
        cohorts = {name: cast(CohortMetrics, unpermuted[name]) for name in COHORTS}
        return ImportanceReport(
            run.config.name, run.source.path, num_repeats, cohorts, sorted(features, key=_rank_key)
        )


def _metrics(run: OpenedRun, title: str, permutation: FeaturePermutation | None) -> _Metrics:
    """Scores all rows; computes the metrics of the cohorts, and of each part of their users."""
    run.data.reader.permutation = permutation
    batches = score_batches(run.assembled, run.data.reader, run.data.loader, title)
    columns = [(b.logits_B, b.labels_B, b.users_B, b.is_new_B) for b in batches]
    scores, labels, users, is_new = (np.concatenate(part) for part in zip(*columns, strict=True))
    partitions = _parts(users, is_new)
    found = MetricsReport.of(EvaluatedRows(scores, labels, users, is_new, columns=partitions))
    return {**found.cohorts, **found.by["cohort"], **found.by["user"]}


def _parts(users_R: NDArray[np.int64], is_new_R: NDArray[np.bool_]) -> dict[str, Partition]:
    """Partitions the rows by parts of the users, of each cohort and of all users."""
    parts_R = (users_R.view(np.uint64) % _NUM_PARTS).astype(np.uint16)
    cohorts = [name for cohort in COHORTS[:2] for name in _part_names(cohort)]
    codes_R = (parts_R + _NUM_PARTS * ~is_new_R).astype(np.uint16)
    return {
        "cohort": Partition(tuple(cohorts), codes_R),
        "user": Partition(tuple(_part_names(COHORTS[2])), parts_R),
    }


def _part_names(cohort: str) -> Iterator[str]:
    return (f"{cohort} {part}" for part in range(_NUM_PARTS))


def _losses(
    unpermuted: _Metrics, permuted: list[_Metrics]
) -> dict[str, dict[str, Interval | None]]:
    return {
        cohort: {metric: _interval(unpermuted, permuted, cohort, metric) for metric in METRICS}
        for cohort in COHORTS
    }


def _interval(
    unpermuted: _Metrics, permuted: list[_Metrics], cohort: str, metric: str
) -> Interval | None:
    """Computes the mean loss on all rows of a cohort, and its interval over parts of the users."""
    mean = _mean_loss(unpermuted, permuted, cohort, metric)
    if mean is None:
        return None
    of_parts = [_mean_loss(unpermuted, permuted, name, metric) for name in _part_names(cohort)]
    over_parts = seed_interval([loss for loss in of_parts if loss is not None] or [None])
    half = None if over_parts is None else over_parts.half_width
    if over_parts is None or half is None:
        return Interval(mean, None, None, 1)
    return Interval(mean, mean - half, mean + half, over_parts.num_seeds)


def _mean_loss(
    unpermuted: _Metrics, permuted: list[_Metrics], group: str, metric: str
) -> float | None:
    """Averages unpermuted minus permuted over the repeats; None where one is undefined."""
    values = [found[group][metric] for found in (unpermuted, *permuted) if group in found]
    known = [value for value in values if value is not None]
    return known[0] - sum(known[1:]) / len(permuted) if len(known) == 1 + len(permuted) else None


def _rank_key(feature: FeatureImportance) -> float:
    loss = feature.losses["all"]["auc"]
    return -loss.mean if loss is not None else float("inf")
