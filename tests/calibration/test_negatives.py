"""Logits learnt from downsampled negatives become those of all rows, and back."""

import numpy as np
import pytest
import torch

from mail_torchrec.calibration.negatives import (
    logit_shift,
    logits_of_sample,
    product_logits,
    shifted_rate,
)
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.metrics.details import ConstantMetrics, sampling_warning
from mail_torchrec.model.step import RankingResult
from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.tasks.layout import ESMM_LAYOUT

P = np.array([0.9, 0.5, 0.2, 0.01])
LOGITS = np.log(P / (1 - P))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.1, 0.001])
def test_the_shift_is_the_correction_of_he_et_al(kept: float) -> None:
    corrected = sigmoid(LOGITS + logit_shift(kept))
    assert corrected == pytest.approx(P / (P + (1 - P) / kept), rel=1e-12)


def test_clicks_of_a_sample_follow_the_logits_of_a_sample() -> None:
    kept, clicks, others = 0.25, 3.0, 40.0
    true = np.log(np.array([clicks / others]))
    assert logits_of_sample(true, kept) == pytest.approx(np.log([clicks / (others * kept)]))
    assert logits_of_sample(true, 1.0) is true


def test_the_rate_of_a_sample_is_that_of_its_rows() -> None:
    clicks, others, kept = 30, 970, 0.1
    assert shifted_rate(clicks / (clicks + others), -logit_shift(kept)) == pytest.approx(30 / 127)
    assert shifted_rate(0.1 + 0.2, 0.0) == 0.1 + 0.2


def constants(rate: float) -> ConstantMetrics:
    return ConstantMetrics(training_ctr=rate, constant={}, item=None, item_popularity=None)


@pytest.mark.parametrize(("ctr", "warns"), [(0.03, False), (0.05, False), (0.2, True)])
def test_test_rows_that_look_sampled_as_the_training_rows_are_told(ctr: float, warns: bool) -> None:
    metrics = {"all": CohortMetrics(auc=None, gauc=None, rows=9, users=9, ctr=ctr)}
    found = sampling_warning(metrics, constants(0.03), logit_shift(0.1))
    assert bool(found) == warns and (not found or "set data.test_negatives_kept" in found)
    assert sampling_warning(metrics, constants(0.03), 0.0) is None


def test_conversions_of_clicks_stay_and_those_of_rows_are_the_product() -> None:
    logits, cvr = torch.tensor(LOGITS), torch.tensor([0.3, -2.0, 4.0, -0.5], dtype=torch.float64)
    tasks = {"cvr": cvr, "ctcvr": logits + cvr}
    result = RankingResult(RankingOutput(logits), tasks, layout=ESMM_LAYOUT)
    shifted = result.with_click_logits(logits + logit_shift(0.1))
    assert torch.equal(shifted.tasks["cvr"], cvr)
    expected = torch.sigmoid(shifted.output.logits_B) * torch.sigmoid(cvr)
    assert torch.sigmoid(shifted.tasks["ctcvr"]).numpy() == pytest.approx(expected.numpy())
    found = product_logits(shifted.output.logits_B.numpy(), cvr.numpy())
    assert found == pytest.approx(shifted.tasks["ctcvr"].numpy(), rel=1e-12)
