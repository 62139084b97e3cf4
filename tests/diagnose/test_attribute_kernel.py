"""Kernel ridge regression on attributes, against its textbook form in dense matrices."""

import numpy as np
import pytest
import scipy.sparse as sp

from mail_torchrec.diagnose import attribute_kernel
from mail_torchrec.diagnose.attribute_kernel import fit_kernel_ridge, kernel
from mail_torchrec.diagnose.features import FOLDS

NUM_LEVELS = (3, 4, 2)


def users(count: int, seed: int = 0) -> tuple[np.ndarray, sp.csr_matrix]:
    """Draws levels [N, F] of three attributes, and encodes them one-hot."""
    rng = np.random.default_rng(seed)
    levels_NF = np.stack([rng.integers(num, size=count) for num in NUM_LEVELS], axis=1)
    blocks = [np.eye(num)[levels_NF[:, place]] for place, num in enumerate(NUM_LEVELS)]
    return levels_NF, sp.csr_matrix(np.concatenate(blocks, axis=1))


def test_the_kernel_counts_the_attributes_that_differ() -> None:
    levels_NF, inputs_NF = users(20)
    number_N = np.random.default_rng(1).standard_normal(20)
    with_number = sp.csr_matrix(sp.hstack([inputs_NF, number_N[:, None]]))
    differ_NN = (levels_NF[:, None] != levels_NF[None]).sum(axis=2)
    squares_NN = (number_N[:, None] - number_N) ** 2 / 2
    found_NN = kernel(with_number, with_number[:7], 0.4)
    np.testing.assert_allclose(found_NN, np.exp(-0.4 * (differ_NN + squares_NN))[:, :7], rtol=1e-9)


def test_each_fold_is_predicted_by_the_other_folds_users_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attribute_kernel, "_PENALTIES", (2.0,))
    _, inputs_NF = users(60)
    rng = np.random.default_rng(2)
    # Numbers that differ, so that no two users are alike and the kernel is invertible.
    inputs_NF = sp.csr_matrix(sp.hstack([inputs_NF, 3 * rng.standard_normal((60, 1))]))
    targets_NT, folds_N = rng.standard_normal((60, 2)), rng.integers(FOLDS, size=60)
    fitted = fit_kernel_ridge(inputs_NF, targets_NT, folds_N)
    found_NT = fitted.predict(inputs_NF, folds_N)
    all_NT = fitted.predict(inputs_NF, np.full(60, FOLDS))
    kernel_NN = kernel(inputs_NF, inputs_NF, fitted.gamma)

    def expected(rows_N: np.ndarray, fitted_N: np.ndarray) -> np.ndarray:
        """Ridge regression with the kernel of all users as features, by its normal equations."""
        products = kernel_NN[:, fitted_N] @ kernel_NN[fitted_N] + 2.0 * kernel_NN
        solved = np.linalg.solve(products, kernel_NN[:, fitted_N] @ targets_NT[fitted_N])
        return np.asarray(kernel_NN[rows_N] @ solved)

    errors_T = np.zeros(2)
    for fold in range(FOLDS):
        rows_N = folds_N == fold
        by_hand_NT = expected(rows_N, ~rows_N)
        np.testing.assert_allclose(found_NT[rows_N], by_hand_NT, atol=1e-4)
        errors_T += ((by_hand_NT - targets_NT[rows_N]) ** 2).sum(axis=0) / 60
    np.testing.assert_allclose(all_NT, expected(folds_N >= 0, folds_N >= 0), atol=1e-4)
    np.testing.assert_allclose(fitted.errors_T, errors_T, rtol=1e-4)


def test_a_cross_of_two_attributes_is_found_and_noise_is_not() -> None:
    levels_NF, inputs_NF = users(1500)
    rng = np.random.default_rng(3)
    cross_N = 2.0 * ((levels_NF[:, 0] + levels_NF[:, 1]) % 2) - 1  # no single attribute tells it
    targets_NT = np.stack([cross_N, rng.standard_normal(1500)], axis=1)
    fitted = fit_kernel_ridge(inputs_NF, targets_NT, rng.integers(FOLDS, size=1500))
    assert fitted.errors_T[0] < 0.02
    assert 0.9 < fitted.errors_T[1] < 1.1
