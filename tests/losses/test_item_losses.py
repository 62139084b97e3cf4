"""InfoNCE over distinct items and ALDI's aligning losses, against float64 numpy written apart."""

import math

import numpy as np
import pytest
import torch

from mail_torchrec.losses.distillation import (
    identification,
    identification_alignment,
    ranking_alignment,
    rating_alignment,
    teacher_weights,
)
from mail_torchrec.losses.info_nce import cosine_logits, info_nce, negative_sums
from tests.support.item_reference import entropy, item_info_nce


@pytest.mark.parametrize("temperature", [0.05, 0.2, 2.0])
def test_info_nce_counts_each_other_item_once(temperature: float) -> None:
    random = np.random.default_rng(3)
    real, generated = random.normal(size=(2, 9, 4))
    ids = np.array([5, 6, 5, 7, 8, 6, 5, 9, 7])
    is_counted = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0], bool)
    expected = item_info_nce(real, generated, ids, is_counted, temperature)
    given = torch.from_numpy(real), torch.from_numpy(generated).requires_grad_()
    logits = cosine_logits(*given, temperature)
    assert logits.max() <= 1e-12
    both = torch.from_numpy(ids), torch.from_numpy(is_counted)
    sums = negative_sums(logits, (both[0], both[0]), (both[1], both[1]))
    found = info_nce(logits.diagonal(), sums)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10)

    def shifted(step: float) -> float:
        other = generated.copy()
        other[3, 1] += step
        return float(item_info_nce(real, other, ids, is_counted, temperature).sum())

    found.sum().backward()
    slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
    gradient = given[1].grad
    assert gradient is not None
    assert gradient[3, 1].item() == pytest.approx(slope, rel=1e-5)


def test_one_item_alone_has_no_negatives_and_no_loss() -> None:
    vectors = torch.randn(3, 4, dtype=torch.float64)
    ids = torch.tensor([4, 4, 4])
    logits = cosine_logits(vectors, vectors.flip(0), 0.2)
    every = torch.ones(3, dtype=torch.bool)
    sums = negative_sums(logits, (ids, ids), (every, every))
    assert info_nce(logits.diagonal(), sums).abs().max() < 1e-12


def test_aligning_losses_are_the_cross_entropies_of_sigmoids() -> None:
    random = np.random.default_rng(4)
    teacher, student = random.normal(size=(2, 7, 2)) * 3
    t, s = torch.from_numpy(teacher), torch.from_numpy(student)
    wanted = entropy(student[:, 0] - student[:, 1], teacher[:, 0] - teacher[:, 1])
    np.testing.assert_allclose(ranking_alignment(t, s), wanted, rtol=1e-12)
    wanted = np.array([sum(abs(a - b)) for a, b in zip(teacher, student, strict=True)])
    np.testing.assert_allclose(rating_alignment(t, s), wanted, rtol=1e-12)
    wanted = entropy(student[:, 0], teacher[:, 0])
    np.testing.assert_allclose(identification_alignment(t[:, 0], s[:, 0]), wanted, rtol=1e-12)


def test_identification_is_the_product_with_itself_less_the_mean_product_with_others() -> None:
    random = np.random.default_rng(5)
    items, negatives = random.normal(size=(2, 6, 3))
    wanted = [x @ x - np.mean([x @ y for y in negatives]) for x in items]
    found = identification(torch.from_numpy(items), torch.from_numpy(negatives).mean(0))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_teachers_are_weighed_by_the_tanh_of_their_frequency_up_to_that_of_the_mean_item() -> None:
    found = teacher_weights(torch.tensor([0.0, 0.1, 1.0, 50.0]), 4.0)
    wanted = [0, math.tanh(0.4), math.tanh(4), math.tanh(4)]
    assert found.tolist() == pytest.approx(wanted)
    assert teacher_weights(torch.tensor([0.0, 3.0]), None).tolist() == [1, 1]
