"""The metrics of a report equal scikit-learn's, whatever the weights, groups, ranks and dealing."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import (
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

from mail_torchrec.distributed.collectives import exchange_rows, rank, world_size
from mail_torchrec.metrics.auc import auc, gauc
from mail_torchrec.metrics.cohorts import (
    ConversionScores,
    EvaluatedRows,
    MetricsReport,
    TaskScores,
)
from mail_torchrec.metrics.exact_sums import UNIT_BITS, exact_sums
from mail_torchrec.metrics.fixed_point import fixed_point, unit_bits
from mail_torchrec.metrics.partitions import value_partition
from mail_torchrec.metrics.predicted import TenthOfRows
from tests.support.ranks import run_ranks

COUNTRIES = np.array(["DE", "FR", "(other)", None, "IT", "ES"], object)


def rows(seed: int, num_rows: int = 600, levels: int = 40) -> dict[str, np.ndarray]:
    """Logits with ties, labels that follow them, users of unequal activity, weights, countries."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels, size=num_rows) / 10).astype(np.float32)
    users = (num_rows**0.7 * rng.random(num_rows) ** 2).astype(np.int64) * 10**15 - 5
    return {
        "scores": scores,
        "labels": (rng.random(num_rows) < expit(scores)).astype(np.float32),
        "users": users,
        "is_new": users % 3 == 0,
        "weights": rng.random(num_rows) * 10.0 ** rng.integers(-3, 3),
        "bought": rng.integers(2, size=num_rows),
        "cvr": rng.normal(size=num_rows).astype(np.float32),
        "like": np.where(rng.random(num_rows) < 0.3, np.nan, rng.integers(2, size=num_rows)),
        "log_seconds": rng.integers(-9, 30, size=num_rows).astype(np.float32) / 10,
        "seconds": np.where(rng.random(num_rows) < 0.3, np.nan, rng.integers(0, 30, num_rows) / 2),
        "country": COUNTRIES[(6 * rng.random(num_rows) ** 2).astype(int)],
    }


def report(columns: dict[str, np.ndarray], *, weighted: bool = True) -> MetricsReport:
    """The report of the rows of all ranks, of which these are this rank's."""
    scores, labels = columns["scores"], columns["labels"]
    return MetricsReport.of(
        EvaluatedRows(
            scores,
            labels,
            columns["users"],
            columns["is_new"],
            ConversionScores(labels * columns["bought"], columns["cvr"], columns["cvr"] + scores),
            columns["weights"] if weighted else None,
            {"country": value_partition(pa.array(columns["country"], pa.large_string()), 3)},
            tasks=[
                TaskScores("like", columns["cvr"], columns["like"], is_number=False),
                TaskScores("watch", columns["log_seconds"], columns["seconds"], is_number=True),
            ],
        )
    )


def gauc_by_loop(
    scores: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: np.ndarray
) -> float:
    """The definition, one user at a time."""
    total = weight = 0.0
    for user in np.unique(users):
        own = users == user
        if 0 < labels[own].sum() < own.sum():
            total += weights[own].sum() * roc_auc_score(
                labels[own], scores[own], sample_weight=weights[own]
            )
            weight += weights[own].sum()
    return total / weight


def expected(
    logits: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Metrics of one prediction by scikit-learn and by their definitions."""
    probabilities = expit(logits.astype(np.float64))
    ctr = np.average(labels, weights=weights)
    loss = log_loss(labels, probabilities, sample_weight=weights)
    entropy = -ctr * math.log(ctr) - (1 - ctr) * math.log(1 - ctr)
    found = {
        "auc": roc_auc_score(labels, logits, sample_weight=weights),
        "gauc": gauc_by_loop(logits, labels, users, weights),
        "log_loss": loss,
        "normalised_entropy": loss / entropy,
        "calibration": (weights * probabilities).sum() / (weights * labels).sum(),
    }
    return {name: pytest.approx(value, rel=1e-12) for name, value in found.items()}


def all_expected(columns: dict[str, np.ndarray], own: np.ndarray, *, weighted: bool) -> Any:
    clicked = own & (columns["labels"] == 1)
    bought = columns["labels"] * columns["bought"]
    weights = columns["weights"] if weighted else np.ones(len(own))
    liked, watched = own & ~np.isnan(columns["like"]), own & ~np.isnan(columns["seconds"])
    judged = {
        "": (columns["scores"], columns["labels"], own),
        "cvr_": (columns["cvr"], bought, clicked),
        "ctcvr_": (columns["cvr"] + columns["scores"], bought, own),
        "like/": (columns["cvr"], columns["like"], liked),
    }
    return {
        f"{prefix}{name}": value
        for prefix, (logits, labels, mask) in judged.items()
        for name, value in expected(
            logits[mask], labels[mask], columns["users"][mask], weights[mask]
        ).items()
    } | {
        f"watch/{name}": pytest.approx(value, rel=1e-9)
        for name, value in numeric(
            columns["log_seconds"][watched], columns["seconds"][watched], weights[watched]
        ).items()
    }


def numeric(logs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Metrics of a predicted number by scikit-learn, Gini over all pairs of rows."""
    values = np.exp(logs.astype(np.float64))

    def concordance(scores: np.ndarray) -> float:
        signs = np.sign(scores[:, None] - scores[None, :])
        return float(((weights * labels)[:, None] * signs * weights[None, :]).sum())

    return {
        "mae": mean_absolute_error(labels, values, sample_weight=weights),
        "rmse": root_mean_squared_error(labels, values, sample_weight=weights),
        "calibration": (weights * values).sum() / (weights * labels).sum(),
        "gini": concordance(logs) / concordance(labels),
    }


def test_metrics_equal_scikit_learns_by_cohort_and_column_with_and_without_weights() -> None:
    columns = rows(1)
    found = report(columns)
    groups = {
        "new": columns["is_new"],
        "old": ~columns["is_new"],
        "all": np.ones(600, bool),
    } | {name: columns["country"] == name for name in ("DE", "FR", "(other)")}
    named = {**found.cohorts, **found.by["country"], "(other)": found.by["country"]["'(other)'"]}
    for name, own in groups.items():
        metrics = dict(named[name])
        assert metrics.pop("rows") == own.sum()
        assert metrics.pop("users") == len(np.unique(columns["users"][own]))
        assert metrics.pop("ctr") == pytest.approx(columns["labels"][own].mean())
        for task, column in (("like", "like"), ("watch", "seconds")):
            labels = columns[column][own & ~np.isnan(columns[column])]
            assert metrics.pop(f"{task}/rows") == len(labels)
            assert metrics.pop(f"{task}/mean") == pytest.approx(labels.mean())
        assert metrics.pop("weighted") == all_expected(columns, own, weighted=True)
        assert metrics == all_expected(columns, own, weighted=False)


def test_rare_values_are_one_group_and_missing_ones_another() -> None:
    """A value called as such a group is quoted; the groups add up to all rows."""
    columns = rows(1)
    by = report(columns).by["country"]
    assert set(list(by)[:3]) == {"DE", "FR", "'(other)'"}
    assert list(by)[3:] == ["(other)", "(missing)"]
    counts = {name: metrics["rows"] for name, metrics in by.items()}
    assert list(counts.values())[:3] == sorted(list(counts.values())[:3], reverse=True)
    assert counts["(missing)"] == sum(value is None for value in columns["country"])
    assert counts["(other)"] == sum(value in ("IT", "ES") for value in columns["country"])
    assert sum(counts.values()) == 600


def test_tenths_are_of_equal_size_and_calibrated_each() -> None:
    """Without ties; the mean of each tenth by hand."""
    columns = rows(2) | {"scores": np.random.default_rng(3).permutation(600) / 100 - 4}
    tenths = report(columns).tenths["pctr"]["all"]
    order = np.argsort(columns["scores"])
    for number, tenth in enumerate(tenths):
        own = order[60 * number : 60 * (number + 1)]
        assert tenth == TenthOfRows(
            rows=60,
            predicted=pytest.approx(expit(columns["scores"][own]).mean()),
            observed=pytest.approx(columns["labels"][own].mean()),
        )


def test_equal_predictions_are_in_one_tenth() -> None:
    tenths = report(rows(2) | {"scores": np.zeros(600)}).tenths["pctr"]
    for cohort in ("new", "old", "all"):
        assert [tenth["rows"] > 0 for tenth in tenths[cohort]] == [True] + [False] * 9
    assert tenths["all"][0]["rows"] == 600
    assert tenths["all"][0]["predicted"] == 0.5


def dealt(dealing: list[int]) -> str:
    """What a rank reports, as JSON, when each row is on the rank that the dealing names."""
    columns = rows(5)
    places = np.arange(600) % len(dealing)
    own = np.flatnonzero(np.array(dealing)[places] == rank())
    own = np.random.default_rng(rank()).permutation(own)
    mine = {name: column[own] for name, column in columns.items()}
    found, constant = report(mine), report(mine | {"scores": np.zeros(len(own), np.float32)})
    unweighted = report(mine, weighted=False)
    return json.dumps([vars(found), vars(unweighted), vars(constant)])


@pytest.fixture(scope="module")
def on_one_rank() -> str:
    return dealt([0])


@pytest.mark.distributed
@pytest.mark.parametrize(
    "dealing",
    [
        [0, 1, 1, 1, 1, 1],
        [3, 1, 1, 0],
        pytest.param([0, 1], marks=pytest.mark.long),
        pytest.param([2, 0, 1, 0], marks=pytest.mark.long),
    ],
)
def test_the_report_is_the_same_to_the_bit_whichever_rank_has_which_rows(
    dealing: list[int], tmp_path: Path, on_one_rank: str
) -> None:
    """Even, uneven and empty shares (rank 2 of 4 has no rows), in any order; weights too."""
    num_ranks = max(dealing) + 1
    assert run_ranks(num_ranks, dealt, tmp_path, dealing) == [on_one_rank] * num_ranks


def test_logits_beyond_any_probability_have_a_finite_loss() -> None:
    """Where the probability rounds to 0 or 1, the loss of a logit z is still |z|."""
    columns = rows(1, 2) | {
        "scores": np.array([-800.0, 60.0]),
        "labels": np.array([1.0, 1.0]),
        "is_new": np.array([True, False]),
    }
    cohorts = report(columns).cohorts
    assert cohorts["new"]["log_loss"] == 800
    assert cohorts["old"]["log_loss"] == pytest.approx(math.exp(-60))


@pytest.mark.parametrize(("bad", "message"), [(-1.0, "negative"), (np.nan, "nan")])
def test_a_weight_that_is_none_is_refused(bad: float, message: str) -> None:
    columns = rows(1)
    columns["weights"][3] = bad
    with pytest.raises(ValueError, match=message):
        report(columns)
    with pytest.raises(ValueError, match=message):
        auc(columns["scores"], columns["labels"], columns["weights"])


def test_an_infinite_loss_is_refused() -> None:
    columns = rows(1)
    columns["scores"][3], columns["labels"][3] = np.inf, 0
    with pytest.raises(ValueError, match=r"finite.*diverged"):
        report(columns)


def test_weights_of_one_and_rows_given_twice_mean_what_they_say() -> None:
    columns = rows(4)
    scores, labels, users = (columns[name] for name in ("scores", "labels", "users"))
    ones, twice = np.ones(600), np.random.default_rng(1).integers(1, 3, 600)
    repeated = [np.repeat(column, twice) for column in (scores, labels, users)]
    assert auc(scores, labels, ones) == pytest.approx(auc(scores, labels), abs=1e-15)
    assert gauc(scores, labels, users, ones) == pytest.approx(gauc(scores, labels, users))
    assert auc(scores, labels, twice) == pytest.approx(auc(*repeated[:2]), abs=1e-15)
    assert gauc(scores, labels, users, twice) == pytest.approx(gauc(*repeated))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40), st.integers(1, 3))
def test_exact_sums_are_those_of_fractions(values: list[float], num_groups: int) -> None:
    """From the smallest double to the largest, of both signs."""
    groups = np.arange(len(values)) % num_groups
    sums = exact_sums(np.array(values), groups, num_groups)
    for group in range(num_groups):
        own = sum(map(Fraction, values[group::num_groups]), Fraction())
        assert Fraction(sums[group], 2**UNIT_BITS) == own


def test_a_billion_rows_of_the_largest_weight_fit() -> None:
    """Their weights as integers add up to less than 2**60, with bits to spare for each."""
    unit = unit_bits(7.5, 10**9)
    [largest, small] = fixed_point(np.array([7.5, 1e-3]), unit).tolist()
    assert largest * 10**9 < 2**60
    assert small * 2.0**-unit == pytest.approx(1e-3, rel=1e-5)


def exchanged() -> tuple[list[list[int]], int]:
    """Rank r sends row [r, s] to each rank s but itself."""
    sent = [[rank(), other] for other in range(world_size()) if other != rank()]
    counts = [int(other != rank()) for other in range(world_size())]
    return exchange_rows(torch.tensor(sent), counts).tolist(), len(counts)


@pytest.mark.distributed
def test_rows_come_to_the_ranks_that_they_are_sent_to(tmp_path: Path) -> None:
    for own, (received, _) in enumerate(run_ranks(3, exchanged, tmp_path)):
        assert received == [[other, own] for other in range(3) if other != own]
