"""AUC and GAUC equal independent implementations, for any order of rows and number of ranks."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from mail_torchrec.distributed.collectives import gather_rows as gather
from mail_torchrec.metrics.cohorts import ConversionScores, auc, compute_metrics, gauc
from tests.support.ranks import run_ranks


def rows(
    seed: int, num_rows: int = 500, levels: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels, users of unequal activity, and who is new."""
    rng = np.random.default_rng(seed)
    users = (num_rows**0.7 * rng.random(num_rows) ** 2).astype(np.int64) * 10**15 - 5
    return (
        rng.integers(levels, size=num_rows) / levels,
        rng.integers(2, size=num_rows),
        users,
        users % 3 == 0,
    )


def gauc_by_loop(scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> float:
    """Zhou et al.'s definition, one user at a time."""
    total, weight = 0.0, 0
    for user in set(users.tolist()):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            total += mine.sum() * roc_auc_score(labels[mine], scores[mine])
            weight += mine.sum()
    return total / weight if weight else math.nan


@given(st.integers(0, 10**6), st.integers(10, 200), st.integers(1, 50))
def test_auc_equals_scikit_learn(seed: int, num_rows: int, levels: int) -> None:
    """With few score levels, so that ties are many."""
    scores, labels, _, _ = rows(seed, num_rows, levels)
    labels[:2] = 0, 1
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


@given(st.integers(0, 10**6), st.integers(1, 100), st.integers(1, 50))
def test_gauc_equals_a_loop_over_users(seed: int, num_rows: int, levels: int) -> None:
    """Users with one class are left out of both."""
    scores, labels, users, _ = rows(seed, num_rows, levels)
    assert gauc(scores, labels, users) == pytest.approx(
        gauc_by_loop(scores, labels, users), abs=1e-14, nan_ok=True
    )


def test_worked_example() -> None:
    """User a: pairs (.9 > .1) won, (.1 = .1) half: 3/4 with 3 rows; b: one lost; c: one class."""
    scores, labels = np.array([0.9, 0.1, 0.1, 0.2, 0.3, 0.8]), np.array([1, 1, 0, 1, 0, 1])
    users = np.array(["a", "a", "a", "b", "b", "c"])
    assert gauc(scores, labels, users) == pytest.approx((3 * 0.75 + 2 * 0.0) / 5)
    assert auc(scores, labels) == (2 + 0.5 + 1 + 2) / 8


@given(st.integers(0, 10**6))
def test_the_order_of_the_rows_changes_no_bit(seed: int) -> None:
    """Integer arithmetic: the ranks' shares may be concatenated in any order."""
    columns = rows(seed, 200)
    order = np.random.default_rng(seed).permutation(200)
    assert compute_metrics(*columns) == compute_metrics(*(column[order] for column in columns))


def test_any_label_and_score_type() -> None:
    """Float32 scores, boolean and float labels, as a trainer has them."""
    scores, labels, users, _ = rows(1)
    assert (
        auc(scores.astype(np.float32), labels.astype(bool))
        == auc(scores, labels.astype(np.float32))
        == auc(scores, labels)
    )
    assert gauc(scores, labels, users.astype(np.uint64)) == pytest.approx(
        gauc(scores, labels, users), abs=1e-14
    )


def test_undefined_metrics_are_none_in_json() -> None:
    """One class, no user with both, no rows: None, never nan."""
    labels, users = np.array([1, 1, 0]), np.array([1, 2, 3])
    metrics = compute_metrics(np.array([0.5, 0.1, 0.2]), labels, users, np.array([1, 1, 0]))
    found = json.loads(json.dumps(metrics, allow_nan=False))
    known = {"auc", "gauc", "rows", "users", "normalised_entropy", "calibration"}
    assert {name: {key: of[key] for key in of if key in known} for name, of in found.items()} == {
        "new": {
            **{"auc": None, "gauc": None, "rows": 2, "users": 2, "normalised_entropy": None},
            "calibration": pytest.approx((expit(0.5) + expit(0.1)) / 2),
        },
        "old": {
            **{"auc": None, "gauc": None, "rows": 1, "users": 1, "normalised_entropy": None},
            "calibration": None,
        },
        "all": {
            **{"auc": 0.5, "gauc": None, "rows": 3, "users": 3},
            "normalised_entropy": pytest.approx(
                log_loss([1, 1, 0], expit([0.5, 0.1, 0.2])) / log_loss([1, 1, 0], [2 / 3] * 3)
            ),
            "calibration": pytest.approx(expit([0.5, 0.1, 0.2]).sum() / 2),
        },
    }
    none = np.array([], np.float64)
    empty = compute_metrics(none, none, none, none)["all"]
    assert empty.pop("rows") == empty.pop("users") == 0  # type: ignore[misc]
    assert set(empty.values()) == {None}


def test_report_splits_by_is_new() -> None:
    """Each part's metrics are those of its rows alone."""
    scores, labels, users, is_new = rows(3)
    metrics = compute_metrics(scores, labels, users, is_new)
    assert metrics["new"]["auc"] == auc(scores[is_new], labels[is_new])
    assert metrics["old"]["gauc"] == gauc(scores[~is_new], labels[~is_new], users[~is_new])
    assert metrics["all"]["rows"] == metrics["new"]["rows"] + metrics["old"]["rows"] == 500


def conversions(seed: int, labels: np.ndarray) -> ConversionScores:
    cvr, bought, ctcvr, _ = rows(seed + 1, len(labels))
    return ConversionScores(labels * bought, cvr, ctcvr / 10**16)


def test_conversions_are_judged_on_clicked_rows_and_on_all(tmp_path: Path) -> None:
    """And leave the metrics of the clicks as they are."""
    scores, labels, users, is_new = rows(3)
    found = conversions(3, labels)
    metrics = compute_metrics(scores, labels.astype(np.float32), users, is_new, found)
    for name, part in compute_metrics(scores, labels, users, is_new).items():
        assert part.items() <= metrics[name].items()
    for name, own in (("new", is_new), ("old", ~is_new), ("all", is_new | True)):
        clicked = own & (labels == 1)
        assert metrics[name]["cvr_auc"] == pytest.approx(
            roc_auc_score(found.labels[clicked], found.cvr[clicked]), abs=1e-14
        )
        assert metrics[name]["ctcvr_auc"] == pytest.approx(
            roc_auc_score(found.labels[own], found.ctcvr[own]), abs=1e-14
        )
        assert metrics[name]["cvr_gauc"] == pytest.approx(
            gauc_by_loop(found.cvr[clicked], found.labels[clicked], users[clicked]), abs=1e-14
        )
        assert metrics[name]["ctcvr_gauc"] == pytest.approx(
            gauc_by_loop(found.ctcvr[own], found.labels[own], users[own]), abs=1e-14
        )
    nobody = compute_metrics(
        scores, labels * 0, users, is_new, ConversionScores(labels * 0, found.cvr, found.ctcvr)
    )["all"]
    undefined = ("cvr_auc", "cvr_gauc", "ctcvr_auc", "ctcvr_gauc")
    assert [nobody[key] for key in undefined] == [None] * 4  # type: ignore[literal-required]


def test_bad_input_is_refused() -> None:
    """Each message says what was received."""
    ok = np.array([0.5, 0.1]), np.array([0, 1]), np.array([1, 1])
    with pytest.raises(ValueError, match="1 nan of 2 rows"):
        auc(np.array([0.5, np.nan]), ok[1])
    with pytest.raises(ValueError, match=r"labels should be 0 or 1, received \[2\]"):
        auc(ok[0], np.array([0, 2]))
    with pytest.raises(ValueError, match=r"received shapes \[\(2,\), \(3,\)"):
        gauc(ok[0], np.array([0, 1, 1]), ok[2])
    with pytest.raises(
        ValueError, match=r"is_new should have one entry a row, received shape \(1,\)"
    ):
        compute_metrics(*ok, np.array([1]))


def test_gather_is_the_identity_in_one_process() -> None:
    """No process group is needed."""
    tensor = torch.arange(3)
    assert gather(tensor) is tensor


def reported(shares: list[int]) -> Any:
    """What a rank reports of all ranks' rows, of which it has its share."""
    rank = torch.distributed.get_rank()
    rows_7 = [torch.from_numpy(column) for column in rows(7)]
    start = sum(shares[:rank])
    mine = slice(start, start + shares[rank])
    tensors = [column[mine] for column in rows_7]
    matrix = gather(torch.arange(1000).reshape(500, 2)[mine])
    assert matrix.tolist() == torch.arange(1000).reshape(500, 2).tolist()
    gathered = [gather(tensor) for tensor in tensors]
    assert [tensor.dtype for tensor in gathered] == [
        torch.float64,
        torch.int64,
        torch.int64,
        torch.bool,
    ]
    assert all(map(torch.equal, gathered, rows_7))
    return compute_metrics(*(tensor.numpy() for tensor in tensors))


@pytest.mark.distributed
@pytest.mark.parametrize("shares", [[500], [199, 301], [450, 0, 50]])
def test_the_report_is_the_same_on_any_number_of_ranks(shares: list[int], tmp_path: Path) -> None:
    """Uneven shares, one rank with nothing: every rank has one process's metrics, to the bit."""
    expected = compute_metrics(*rows(7))
    assert run_ranks(len(shares), reported, tmp_path, shares) == [expected] * len(shares)
