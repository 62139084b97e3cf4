"""Kernel ridge regression on attributes, in closed form, with predictions out of fold.

The kernel of two users is ``exp(-gamma * d)`` where ``d`` counts the categories in which they
differ, and half the squared differences of standardised numbers. For categories it is the product
of ``1 + rho * [equal]`` over columns but for a factor, ``rho = exp(gamma) - 1``: a sum over all
crosses of columns, those of ``k`` columns weighed by ``rho^k`` (an ANOVA kernel; Shawe-Taylor and
Cristianini 2004, section 9.2). Nystroem's method (Williams and Seeger, NIPS 2000) takes it to
``M`` users, the landmarks, so that no matrix is larger than rows by landmarks.

Shapes: ``N`` rows, ``F`` features, ``M`` landmarks, ``T`` targets, ``K`` fits (one
without each fold, and one of all rows), ``L`` penalties.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy import linalg

from mail_torchrec.diagnose.features import FOLDS, Floats, Ints

_LANDMARKS = 700
_MEAN_DISTANCES = (1.0, 2.5)
"""Mean distances of two users, times gamma, that are tried: few and many crosses."""
_PENALTIES = (0.3, 3.0, 30.0)
_SMALLEST_EIGENVALUE = 1e-6
_NONE: Floats = np.zeros(())
"""Sums of the fold that the fit on all users leaves out: none."""


@dataclass(frozen=True)
class KernelRidge:
    """Fits of one kernel: one on all users, and one without each fold.

    Args:
        landmarks_MF: inputs of the landmarks.
        gamma: of the kernel.
        whiten_MM: from kernel values to features in which the penalty is a sum of squares.
        weights_KMT: of the fit without fold k, and last of the fit on all users.
        errors_T: mean squared errors out of fold.
    """

    landmarks_MF: sp.csr_matrix
    gamma: float
    whiten_MM: Floats
    weights_KMT: Floats
    errors_T: Floats

    def predict(self, inputs_NF: sp.csr_matrix, folds_N: Ints) -> Floats:
        """Predicts the targets [N, T], each row by the fit without its fold.

        Args:
            inputs_NF: inputs.
            folds_N: fold of each row; ``FOLDS`` for the fit on all users.
        """
        predicted_NT = np.empty((len(folds_N), self.weights_KMT.shape[2]))
        for fold in range(FOLDS + 1):
            if len(places := np.flatnonzero(folds_N == fold)):
                features_NM = self._features(inputs_NF[places])
                predicted_NT[places] = features_NM @ self.weights_KMT[fold]
        return predicted_NT

    def _features(self, inputs_NF: sp.csr_matrix) -> Floats:
        return kernel(inputs_NF, self.landmarks_MF, self.gamma) @ self.whiten_MM


def fit_kernel_ridge(inputs_NF: sp.csr_matrix, targets_NT: Floats, folds_N: Ints) -> KernelRidge:
    """Fits kernels and penalties, and keeps those of the smallest errors on users left out.

    Args:
        inputs_NF: one row a user: categories one-hot, numbers standardised.
        targets_NT: standardised; each has the penalty that suits it best.
        folds_N: fold of each user.
    """
    rng = np.random.default_rng(0)
    num_users = inputs_NF.shape[0]
    chosen = np.sort(rng.permutation(num_users)[:_LANDMARKS])
    landmarks_MF = inputs_NF[chosen]
    mean = float(_distances(landmarks_MF, landmarks_MF).mean())
    fits = (
        _fit(inputs_NF, targets_NT, folds_N, landmarks_MF, tried / max(mean, 1e-9))
        for tried in _MEAN_DISTANCES
    )
    return min(fits, key=lambda fit: float(fit.errors_T.sum()))


def kernel(inputs_NF: sp.csr_matrix, landmarks_MF: sp.csr_matrix, gamma: float) -> Floats:
    """Computes the kernel [N, M] of users and landmarks; see the head of this module."""
    values_NM: Floats = np.exp(-gamma * _distances(inputs_NF, landmarks_MF))
    return values_NM


def _distances(inputs_NF: sp.csr_matrix, landmarks_MF: sp.csr_matrix) -> Floats:
    """Returns half the squared distances, [N, M]: categories that differ count 1."""
    products_NM = (inputs_NF @ landmarks_MF.T).toarray()
    squares_N, squares_M = (
        np.asarray(inputs.multiply(inputs).sum(axis=1)).ravel()
        for inputs in (inputs_NF, landmarks_MF)
    )
    distances_NM: Floats = np.maximum((squares_N[:, None] + squares_M) / 2 - products_NM, 0)
    return distances_NM


def _fit(
    inputs_NF: sp.csr_matrix,
    targets_NT: Floats,
    folds_N: Ints,
    landmarks_MF: sp.csr_matrix,
    gamma: float,
) -> KernelRidge:
    values_M, vectors_MM = linalg.eigh(kernel(landmarks_MF, landmarks_MF, gamma))
    kept = values_M > _SMALLEST_EIGENVALUE * values_M[-1]
    whiten_MM = vectors_MM[:, kept] / np.sqrt(values_M[kept])
    features_NM = kernel(inputs_NF, landmarks_MF, gamma) @ whiten_MM
    weights_KMT, errors_T = ridge_without_folds(features_NM, targets_NT, folds_N)
    return KernelRidge(landmarks_MF, gamma, whiten_MM, weights_KMT, errors_T)


def ridge_without_folds(
    features_NM: Floats, targets_NT: Floats, folds_N: Ints
) -> tuple[Floats, Floats]:
    """Fits ridge regressions without each fold, and on all rows, by sums over the folds.

    Args:
        features_NM: inputs.
        targets_NT: targets; each has the penalty with the smallest errors out of fold.
        folds_N: fold of each row.

    Returns:
        Weights without each fold and last of all rows [FOLDS + 1, M, T], and mean squared errors
        out of fold [T].
    """
    parts = [features_NM[folds_N == fold] for fold in range(FOLDS)]
    targets = [targets_NT[folds_N == fold] for fold in range(FOLDS)]
    squares = [part.T @ part for part in parts]
    products = [part.T @ target for part, target in zip(parts, targets, strict=True)]
    all_MM, all_MT = np.sum(squares, axis=0), np.sum(products, axis=0)
    unit_MM = np.eye(features_NM.shape[1])
    weights_LKMT: list[Floats] = []
    errors_LT: list[Floats] = []
    for penalty in _PENALTIES:
        fits = [
            linalg.solve(all_MM - square + penalty * unit_MM, all_MT - product, assume_a="pos")
            for square, product in zip([*squares, _NONE], [*products, _NONE], strict=True)
        ]
        errors = [
            ((target - part @ fit) ** 2).sum(axis=0)
            for part, target, fit in zip(parts, targets, fits[:FOLDS], strict=True)
        ]
        weights_LKMT.append(np.stack(fits))
        errors_LT.append(np.sum(errors, axis=0) / len(features_NM))
    best_T = np.argmin(errors_LT, axis=0)
    places = range(targets_NT.shape[1])
    weights = [weights_LKMT[best_T[target]][:, :, target] for target in places]
    errors_T: Floats = np.min(errors_LT, axis=0)
    return np.stack(weights, axis=2), errors_T
