"""Losses of positive numbers such as watch times, whose model predicts the expected number.

Shape: ``B`` rows.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def weighted_logistic_loss(log_odds_B: Tensor, values_B: Tensor) -> Tensor:
    """Computes the weighted logistic loss of each row (Covington et al., RecSys 2016), [B].

    Each row is a positive of the weight of its value and a negative of weight 1, so that the odds
    with the least loss are the expected value. The paper leaves out the negative of rows with a
    value; of clicked rows at a rate ``P``, its odds are ``1 / (1 - P)`` times too high.

    Args:
        log_odds_B: log of the predicted value.
        values_B: not negative.
    """
    return values_B * functional.softplus(-log_odds_B) + functional.softplus(log_odds_B)


def log_normal_loss(log_means_B: Tensor, deviations_B: Tensor, values_B: Tensor) -> Tensor:
    """Computes the negative log-likelihood of each row under a log-normal distribution, [B].

    The log of the value has the mean ``mu = log(mean) - s^2 / 2`` and the deviation ``s``.

    Args:
        log_means_B: log of the mean of the value, ``mu + s^2 / 2``.
        deviations_B: standard deviation ``s`` of its log.
        values_B: positive.
    """
    logs_B = values_B.log()
    errors_B = (logs_B - log_means_B + deviations_B.square() / 2) / deviations_B
    return errors_B.square() / 2 + torch.log(deviations_B) + logs_B + math.log(2 * math.pi) / 2
