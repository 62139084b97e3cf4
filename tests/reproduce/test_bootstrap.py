"""The bootstrap: equal to loops, to Student's t where only seeds vary, and covering the truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from mail_torchrec.metrics.auc import auc, gauc
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reproduce.bootstrap import (
    BootstrappedMetric,
    bootstrap,
    headroom_recovered,
    paired_difference,
    relative_improvement,
)
from mail_torchrec.reproduce.resampling import WeightedAuc, bootstrap_run, user_counts


def rows(
    seed: int, num_rows: int = 60, num_users: int = 9, levels: int = 12, gain: float = 0.0
) -> Predictions:
    """Makes rows whose labels and users do not depend on the seed.

    A third of the users is new; few score levels make ties.
    """
    data = np.random.default_rng(0)
    users, labels = data.integers(num_users, size=num_rows) * 7, data.integers(2, size=num_rows)
    scores = np.random.default_rng([seed, 1]).integers(levels, size=num_rows) / levels
    return Predictions.from_columns(scores + gain * labels, labels, users, users % 3 == 0)


@given(st.integers(0, 10**6), st.integers(2, 80), st.integers(1, 40))
def test_the_weighted_auc_equals_scikit_learn(seed: int, num_rows: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.integers(levels, size=num_rows), random.integers(2, size=num_rows)
    labels[:2] = 0, 1
    weights = random.integers(1, 5, size=(num_rows, 3)).astype(np.float64)
    found = WeightedAuc(scores, labels, np.arange(num_rows)).auc_K(weights)
    assert found == pytest.approx(
        [roc_auc_score(labels, scores, sample_weight=weights[:, k]) for k in range(3)], abs=1e-12
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(4, 30), st.integers(1, 6))
def test_a_resample_is_the_rows_of_the_drawn_users_written_out(
    seed: int, num_rows: int, num_users: int
) -> None:
    """By loops: a user drawn twice is two users of the same rows."""
    run = rows(seed, num_rows, num_users, levels=4)
    found = bootstrap_run(run, num_resamples=6)
    users = sorted(set(run.users_R.tolist()))
    [counts_UB] = user_counts(len(users), 6, at_a_time=100)
    for column in range(7):
        pairs, wins, weight, total = 0, 0.0, 0, 0.0
        drawn = [
            user
            for user, count in zip(users, counts_UB[:, column], strict=True)
            for _ in range(int(count))
        ]
        written_out = [
            (run.scores_R[i], run.labels_R[i], copy)
            for copy, user in enumerate(drawn)
            for i in np.flatnonzero(run.users_R == user)
        ]
        for score, label, _ in written_out:
            for other, other_label, _ in written_out:
                if label == 1 and other_label == 0:
                    pairs, wins = (
                        pairs + 1,
                        wins + (1.0 if score > other else 0.5 if score == other else 0.0),
                    )
        for copy in range(len(drawn)):
            mine = [(score, label) for score, label, of in written_out if of == copy]
            labels = [label for _, label in mine]
            if len(set(labels)) == 2:
                weight, total = (
                    weight + len(mine),
                    total + len(mine) * roc_auc_score(labels, [score for score, _ in mine]),
                )
        assert found["auc"][column] == pytest.approx(
            wins / pairs if pairs else math.nan, abs=1e-12, nan_ok=True
        )
        assert found["gauc"][column] == pytest.approx(
            total / weight if weight else math.nan, abs=1e-12, nan_ok=True
        )


def test_the_first_column_is_the_data_and_pieces_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = rows(1)
    whole = bootstrap_run(run, 30)
    assert whole["auc"][0] == pytest.approx(auc(run.scores_R, run.labels_R), abs=1e-15)
    assert whole["gauc"][0] == pytest.approx(
        gauc(run.scores_R, run.labels_R, run.users_R), abs=1e-15
    )
    monkeypatch.setattr("mail_torchrec.reproduce.resampling._MAX_CELLS", 7 * 60)
    pieces = bootstrap_run(run, 30)
    assert all(pieces[metric] == pytest.approx(whole[metric], abs=1e-12) for metric in whole)


def test_every_user_is_drawn_as_often_as_another() -> None:
    [counts_UB] = user_counts(20, 2000, at_a_time=5000)
    assert (counts_UB[:, 0] == 1).all() and (counts_UB.sum(0) == 20).all()
    assert counts_UB[:, 1:].mean(1) == pytest.approx(np.ones(20), abs=0.1)
    assert counts_UB[:, 1:].var(1) == pytest.approx(np.full(20, 1 - 1 / 20), rel=0.15)


def test_a_method_differs_from_itself_by_exactly_nothing() -> None:
    of_both = bootstrap({"a": [rows(1), rows(2)], "b": [rows(1), rows(2)]}, 50)
    for cohort in ("new", "old"):
        for metric in ("auc", "gauc"):
            interval = paired_difference(of_both["a"][cohort][metric], of_both["b"][cohort][metric])
            assert interval is not None and (interval.mean, interval.low, interval.high) == (
                0.0,
                0.0,
                0.0,
            )


def test_the_same_runs_give_the_same_interval() -> None:
    first, second = (
        bootstrap({"a": [rows(1), rows(2)]}, 50)["a"]["new"]["auc"].interval() for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_where_users_do_not_vary_the_interval_is_that_of_students_t(num_seeds: int) -> None:
    values = np.random.default_rng(num_seeds).normal(0.7, 0.01, num_seeds)
    interval = BootstrappedMetric(np.repeat(values[:, None], 40_001, axis=1)).interval()
    assert interval is not None and interval.low is not None and interval.high is not None
    half = student.ppf(0.975, num_seeds - 1) * values.std(ddof=1) / math.sqrt(num_seeds)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert (interval.high - values.mean()) / half == pytest.approx(1, abs=0.03)
    assert (values.mean() - interval.low) / half == pytest.approx(1, abs=0.03)


def covered(
    make: Callable[[np.random.Generator, int], list[Predictions]], truth: float, times: int = 100
) -> float:
    """Measures how often the interval of a difference between two methods holds the truth."""
    hits = 0
    for number in range(times):
        random = np.random.default_rng([9, number])
        data = int(random.integers(10**9))
        runs = [make(random, data), make(random, data)]
        values = [
            BootstrappedMetric(np.stack([bootstrap_run(run, 100)["auc"] for run in of_method]))
            for of_method in runs
        ]
        interval = paired_difference(*values)
        assert interval is not None and interval.low is not None and interval.high is not None
        hits += interval.low <= truth <= interval.high
    return hits / times


@pytest.mark.parametrize(("seed_noise", "row_noise"), [(0.0, 1.0), (0.6, 0.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(seed_noise: float, row_noise: float) -> None:
    """Two equally good methods of four seeds whose errors differ by user and row, or by seed."""

    def make(random: np.random.Generator, data: int) -> list[Predictions]:
        shared = np.random.default_rng(data)
        users = shared.integers(25, size=150)
        labels = shared.random(150) < 0.3 + 0.4 * shared.random(25)[users]
        by_user = random.normal(size=25)[users] * row_noise
        slopes = 1 + random.normal(size=4) * seed_noise
        return [
            Predictions.from_columns(
                slope * labels + by_user + random.normal(size=150),
                labels,
                users,
                np.zeros(150, np.bool_),
            )
            for slope in slopes
        ]

    assert 0.89 <= covered(make, truth=0.0) <= 1.0


def test_a_clear_gain_is_clear_of_zero() -> None:
    of_both = bootstrap(
        {
            "base": [rows(1), rows(2), rows(3)],
            "better": [rows(seed, gain=0.8) for seed in (1, 2, 3)],
        },
        200,
    )
    interval = paired_difference(of_both["better"]["old"]["auc"], of_both["base"]["old"]["auc"])
    assert interval is not None and interval.low is not None and interval.low > 0


def test_headroom_recovered_is_a_ratio_of_means_and_undefined_without_headroom() -> None:
    base, method, oracle = (
        BootstrappedMetric(np.array(values))
        for values in ([[0.6] * 9, [0.7] * 9], [[0.65] * 9, [0.7] * 9], [[0.8] * 9] * 2)
    )
    interval = headroom_recovered(method, base, oracle)
    assert interval is None  # two seeds do not tell .2 and .1 from nothing
    base, method = (BootstrappedMetric(np.array([[value] * 9] * 2)) for value in (0.6, 0.65))
    interval = headroom_recovered(method, base, oracle)
    assert interval is not None and (interval.mean, interval.low, interval.high) == pytest.approx(
        (0.25, 0.25, 0.25)
    )
    assert headroom_recovered(method, base, base) is None


def test_a_cohort_with_one_class_has_no_metric() -> None:
    run = Predictions.from_columns(
        np.array([0.1, 0.2, 0.3]),
        np.array([1, 1, 0]),
        np.array([1, 1, 2]),
        np.array([True, True, False]),
    )
    metrics = bootstrap({"a": [run]}, 20)["a"]
    assert (
        metrics["new"]["auc"].interval() is None
        and paired_difference(metrics["old"]["gauc"], metrics["old"]["gauc"]) is None
    )


def test_relative_improvement_is_that_of_the_paper() -> None:
    assert relative_improvement(0.5934, 0.5862) == pytest.approx(
        1.22, abs=0.01
    )  # Table 2: MAIL-Base, new users of the public dataset


def test_other_rows_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"'b' was evaluated on other rows than 'a' \(labels differ\); the test data changed",
    ):
        bootstrap(
            {
                "a": [rows(1)],
                "b": [
                    Predictions.from_columns(
                        rows(2).scores_R, 1 - rows(2).labels_R, rows(2).users_R, rows(2).is_new_R
                    )
                ],
            },
            5,
        )


def test_unequal_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"each method should have the same seeds, received so many runs: {'a': 2, 'b': 1}",
    ):
        bootstrap({"a": [rows(1), rows(2)], "b": [rows(1)]}, 5)
