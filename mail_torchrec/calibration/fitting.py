"""Fitting of Platt and isotonic calibration on scored rows.

A row counts its weight. Shapes: ``R`` rows, ``L`` different logits, ``N`` bins of them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from mail_torchrec.calibration.calibrator import (
    Calibration,
    CalibrationMetrics,
    Calibrator,
    Method,
)
from mail_torchrec.calibration.negatives import logit_shift, logits_of_sample

Floats = NDArray[np.float64]

MIN_OF_CLASS: dict[Method, int] = {"platt": 100, "isotonic": 400}
"""Fewest clicked and fewest other rows that a method is fitted on."""
_ROWS_OF_BIN = 20
"""Fewest rows of the rarer class in a bin of the isotonic calibration."""
_MAX_BINS = 100
_LEAST_SLOPE = 0.01
"""Slope where the click rate does not rise with the model's: small, yet it keeps the order."""


def calibrate(
    method: Method,
    logits_R: NDArray[Any],
    labels_R: NDArray[Any],
    users_R: NDArray[np.int64],
    negatives_kept: float = 1.0,
    weights_R: NDArray[Any] | None = None,
) -> Calibration:
    """Fits a calibration on rows, and measures it on halves of their users.

    Args:
        method: platt or isotonic.
        logits_R: the model's logits of a click.
        labels_R: 1 where the row was clicked, else 0.
        users_R: hash of the row's user.
        negatives_kept: share of the unclicked rows that the rows still hold.
        weights_R: of the rows, not negative; None for 1 each.

    Raises:
        ValueError: too few rows of a class, a logit that is not finite, or scores that rank the
            rows no better than chance.
    """
    x_R, y_R = logits_R.astype(np.float64), labels_R.astype(np.float64)
    w_R = np.ones_like(x_R) if weights_R is None else weights_R.astype(np.float64)
    if (w_R == 0).any():
        counts_R = w_R > 0
        x_R, y_R, w_R, users_R = x_R[counts_R], y_R[counts_R], w_R[counts_R], users_R[counts_R]
    half_R = users_R % 2 == 1
    _check(method, x_R, y_R, half_R)
    out_of_fold_R = np.empty_like(x_R)
    for other_R in (half_R, ~half_R):
        found = _fit(method, x_R[~other_R], y_R[~other_R], w_R[~other_R])
        out_of_fold_R[other_R] = found(x_R[other_R])
    return Calibration(
        calibrator=_fit(method, x_R, y_R, w_R).shifted(logit_shift(negatives_kept)),
        rows=len(x_R),
        clicks=int(y_R.sum()),
        before=_measure(logits_of_sample(x_R, negatives_kept), y_R, w_R),
        after=_measure(out_of_fold_R, y_R, w_R),
    )


def _check(method: Method, x_R: Floats, y_R: Floats, half_R: NDArray[np.bool_]) -> None:
    if not np.isfinite(x_R).all():
        raise ValueError("scores of the calibration rows should be finite; the model diverged")
    clicks, least = int(y_R.sum()), MIN_OF_CLASS[method]
    if min(clicks, len(y_R) - clicks) < least:
        raise ValueError(
            f"--calibrate {method} should have at least {least} clicked rows and {least} others, "
            f"received {clicks} and {len(y_R) - clicks}; give more rows by --calibration-data"
            + (", or take platt" if method == "isotonic" else "")
        )
    for rows_R in (half_R, ~half_R):  # each is fitted and measured on its own
        if min(y_R[rows_R].sum(), (1 - y_R[rows_R]).sum()) < least / 4:
            raise ValueError(
                "nearly all clicked rows, or others, of the calibration data are of a few users; "
                "give rows of more users by --calibration-data"
            )


def _fit(method: Method, x_R: Floats, y_R: Floats, w_R: Floats) -> Calibrator:
    fit = _fit_platt if method == "platt" else _fit_isotonic
    return fit(x_R, y_R, w_R * (len(w_R) / w_R.sum()))


def _fit_platt(x_R: Floats, y_R: Floats, w_R: Floats) -> Calibrator:
    """Fits a slope and an offset of the logit by Newton's method.

    The targets are Platt's, a little off 0 and 1, so that there is an optimum whatever the rows.
    """
    clicks = (w_R * y_R).sum()
    others = w_R.sum() - clicks
    targets_R = np.where(y_R == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
    mean = _mean(x_R, w_R)
    deviation = max(np.sqrt(_mean((x_R - mean) ** 2, w_R)), 1e-12)
    design_R2 = np.stack([(x_R - mean) / deviation, np.ones_like(x_R)], axis=1)
    found_2 = np.array([0.0, np.log(clicks / others)])
    loss = _log_loss(design_R2 @ found_2, targets_R, w_R)
    for _ in range(100):
        p_R = _sigmoid(design_R2 @ found_2)
        gradient_2 = design_R2.T @ (w_R * (p_R - targets_R))
        curvature_22 = (design_R2 * (w_R * p_R * (1 - p_R))[:, None]).T @ design_R2
        step_2 = np.linalg.solve(curvature_22 + 1e-9 * np.eye(2), gradient_2)
        while (new := _log_loss(design_R2 @ (found_2 - step_2), targets_R, w_R)) > loss:
            step_2 /= 2
            if np.abs(step_2).max() < 1e-12:
                break
        found_2, loss = found_2 - step_2, new
        if np.abs(step_2).max() < 1e-10:
            break
    slope = float(found_2[0] / deviation)
    if slope <= 0:
        raise ValueError(
            "the scores of the calibration rows should rise with their clicks, and they fall: "
            "the model ranks these rows no better than chance; are they of other data?"
        )
    at_mean = float(found_2[1])
    return Calibrator(
        method="platt",
        logits=(float(mean),),
        calibrated=(at_mean,),
        first_slope=slope,
        last_slope=slope,
    )


def _fit_isotonic(x_R: Floats, y_R: Floats, w_R: Floats) -> Calibrator:
    """Fits increasing click rates of bins of the logit (Zadrozny and Elkan 2002).

    One row of the average rate is added to each bin, so that no rate is 0 or 1. The map goes
    through the bins' mean probabilities. Among bins of one rate it rises by :data:`_LEAST_SLOPE`,
    and beyond a bin with a rate of its own by the model's slope.
    """
    rows_N, clicks_N, predicted_N = _bins(x_R, y_R, w_R)
    rate = _mean(y_R, w_R)
    rates_N = isotonic_regression((clicks_N + rate) / (rows_N + 1), sample_weight=rows_N + 1)
    is_pooled_N = np.diff(rates_N) <= 0
    if is_pooled_N.all():
        raise ValueError(
            "the clicks of the calibration rows should rise with their scores, and do not: the "
            "model ranks these rows no better than chance; are they of other data?"
        )
    centres_N = _logit(predicted_N / rows_N)
    calibrated_N = _logit(rates_N) + _LEAST_SLOPE * (centres_N - centres_N.mean())
    found = Calibrator(
        method="isotonic",
        logits=tuple(centres_N.tolist()),
        calibrated=tuple(calibrated_N.tolist()),
        first_slope=_LEAST_SLOPE if is_pooled_N[0] else 1.0,
        last_slope=_LEAST_SLOPE if is_pooled_N[-1] else 1.0,
    )
    return found.shifted(_shift_to_mean(found(x_R), w_R, rate))


def _bins(x_R: Floats, y_R: Floats, w_R: Floats) -> tuple[Floats, Floats, Floats]:
    """Divides rows, in the order of their logits, into bins of equally many of the rarer class.

    Rows of one logit are in one bin, and a bin has :data:`_ROWS_OF_BIN` of the rarer class or more.

    Returns:
        Weight of the rows, of the clicks, and of the predicted clicks of each bin, [N].
    """
    x_L, place_R = np.unique(x_R, return_inverse=True)
    rows_L, clicks_L = np.bincount(place_R), np.bincount(place_R, weights=y_R)
    rare_L = np.cumsum(clicks_L if y_R.mean() < 0.5 else rows_L - clicks_L)
    num_bins = min(_MAX_BINS, int(rare_L[-1]) // _ROWS_OF_BIN)
    bin_L = np.ceil(rare_L * num_bins / rare_L[-1]).astype(np.int64).clip(min=1)
    _, bin_L = np.unique(bin_L, return_inverse=True)  # without empty ones
    rows_L, clicks_L = np.bincount(place_R, w_R), np.bincount(place_R, w_R * y_R)
    weights = (rows_L, clicks_L, _sigmoid(x_L) * rows_L)
    rows_N, clicks_N, predicted_N = (
        np.bincount(bin_L, one_L).astype(np.float64) for one_L in weights
    )
    return rows_N, clicks_N, predicted_N


def _shift_to_mean(logits_R: Floats, w_R: Floats, rate: float) -> float:
    """Returns what is added to logits so that their mean probability is a rate."""
    shift = 0.0
    for _ in range(20):
        p_R = _sigmoid(logits_R + shift)
        shift -= float((_mean(p_R, w_R) - rate) / _mean(p_R * (1 - p_R), w_R))
    return shift


def _measure(logits_R: Floats, y_R: Floats, w_R: Floats) -> CalibrationMetrics:
    return CalibrationMetrics(
        calibration=float((w_R * _sigmoid(logits_R)).sum() / (w_R * y_R).sum()),
        log_loss=_log_loss(logits_R, y_R, w_R),
    )


def _log_loss(logits_R: Floats, targets_R: Floats, w_R: Floats) -> float:
    return float(_mean(np.logaddexp(0, logits_R) - targets_R * logits_R, w_R))


def _mean(values_R: Floats, w_R: Floats) -> Any:
    return (w_R * values_R).sum() / w_R.sum()


def _logit(p_N: Floats) -> Floats:
    found: Floats = np.log(p_N) - np.log1p(-p_N)
    return found


def _sigmoid(logits_R: Floats) -> Floats:
    found: Floats = np.exp(-np.logaddexp(0, -logits_R))
    return found
