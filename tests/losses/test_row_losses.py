"""Row losses equal their formulas in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mail_torchrec.losses.match import sampled_softmax
from mail_torchrec.losses.paired_mse import paired_mse
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.losses.reconstruction import Reduction, reconstruction_loss
from mail_torchrec.losses.reduction import weighted_mean
from mail_torchrec.losses.regression import log_normal_loss, weighted_logistic_loss
from tests.support import reference


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_reconstruction_equals_the_formula(reduction: Reduction, masked: bool) -> None:
    predicted, target = normal(5, 4, 3), normal(5, 4, 3, seed=1)
    mask = torch.arange(4) < torch.tensor([0, 1, 2, 3, 4]).unsqueeze(1) if masked else None
    expected = [
        reference.squared_error(
            predicted[n].numpy(),
            target[n].numpy(),
            None if mask is None else mask[n].numpy(),
            reduction,
        )
        for n in range(5)
    ]
    np.testing.assert_allclose(
        reconstruction_loss(predicted, target, mask, reduction).numpy(), expected, rtol=1e-12
    )


def test_masked_mean_ignores_what_is_masked() -> None:
    target, mask = normal(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    predicted = target + torch.where(mask.unsqueeze(2), 2.0, 1000.0)
    assert reconstruction_loss(predicted, target, mask).tolist() == pytest.approx([4.0, 4.0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_paired_mse_equals_the_formula(reduction: Reduction) -> None:
    P, Q = normal(6, 5), normal(6, 5, seed=1)
    expected = [
        reference.squared_error(P[n : n + 1].numpy(), Q[n : n + 1].numpy(), None, reduction)
        for n in range(6)
    ]
    np.testing.assert_allclose(paired_mse(P, Q, reduction).numpy(), expected, rtol=1e-12)
    assert paired_mse(P[:0], Q[:0], reduction).shape == (0,)


@given(st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1)), min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_ranking_loss_equals_the_formula(rows: list[tuple[float, int]]) -> None:
    logits, labels = (
        torch.tensor([row[0] for row in rows], dtype=torch.float64),
        torch.tensor([row[1] for row in rows]),
    )
    expected = [reference.bce(logit, label) for logit, label in rows]
    np.testing.assert_allclose(
        ranking_loss(logits, labels).numpy(), expected, rtol=1e-4, atol=1e-12
    )


def test_ranking_loss_is_finite_for_certain_logits() -> None:
    assert ranking_loss(torch.tensor([500.0, -500.0]), torch.tensor([0.0, 1.0])).tolist() == [
        500.0,
        500.0,
    ]


def test_weighted_mean_is_a_share_of_the_whole() -> None:
    losses, weights = normal(6), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    shares = [
        weighted_mean(losses[part], weights[part], weights.sum())
        for part in (slice(0, 2), slice(2, 2), slice(2, 6))
    ]
    assert sum(share.item() for share in shares) == pytest.approx(
        np.average(losses.numpy(), weights=weights.numpy())
    )


def test_weighted_mean_without_weight_is_zero_with_zero_gradient() -> None:
    for num_rows in (0, 3):
        losses = torch.ones(num_rows, requires_grad=True)
        value = weighted_mean(losses, torch.zeros(num_rows), torch.tensor(0))
        value.backward()
        assert value.item() == 0.0 and losses.grad is not None and losses.grad.eq(0).all()


# Sampled softmax

NUM_ITEMS = 9


def match_inputs(num_rows: int, num_negatives: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "user_BD": normal(num_rows, 4, seed=seed),
        "last_BD": normal(num_rows, 4, seed=seed + 1),
        "negatives_KD": normal(num_negatives, 4, seed=seed + 2),
        "last_ids_B": torch.randint(NUM_ITEMS, (num_rows,), generator=generator),
        "negative_ids_K": torch.randint(NUM_ITEMS, (num_negatives,), generator=generator),
        "last_log_q_B": normal(num_rows, seed=seed + 3),
        "negative_log_q_K": normal(num_negatives, seed=seed + 4),
    }


@given(num_rows=st.integers(0, 6), num_negatives=st.integers(0, 12), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_sampled_softmax_equals_the_formula(num_rows: int, num_negatives: int, seed: int) -> None:
    inputs = match_inputs(num_rows, num_negatives, seed)
    found = sampled_softmax(**inputs)
    assert found.shape == (num_rows,)
    for row in range(num_rows):
        shared = [
            inputs["user_BD"][row].numpy(),
            inputs["last_BD"][row].numpy(),
            inputs["negatives_KD"].numpy(),
        ]
        ids = [int(inputs["last_ids_B"][row]), inputs["negative_ids_K"].numpy()]
        log_q = [float(inputs["last_log_q_B"][row]), inputs["negative_log_q_K"].numpy()]
        assert found[row].item() == pytest.approx(
            reference.sampled_softmax(*shared, *ids, *log_q), abs=1e-10
        )


def test_all_items_as_negatives_give_the_full_softmax() -> None:
    table, user, last_ids = (
        normal(NUM_ITEMS, 4),
        normal(5, 4, seed=1),
        torch.tensor([0, 3, 3, 8, 5]),
    )
    found = sampled_softmax(
        user,
        table[last_ids],
        table,
        last_ids,
        torch.arange(NUM_ITEMS),
        torch.zeros(5),
        torch.zeros(NUM_ITEMS),
    )
    for row in range(5):
        logits = table.numpy() @ user[row].numpy()
        expected = math.log(np.exp(logits).sum()) - logits[last_ids[row]]
        assert found[row].item() == pytest.approx(expected, rel=1e-10)


def test_accidental_hits_count_for_nothing_and_get_no_gradient() -> None:
    inputs = match_inputs(3, 4, seed=5)
    inputs |= {"last_ids_B": torch.tensor([1, 2, 7]), "negative_ids_K": torch.tensor([1, 2, 2, 1])}
    negatives = inputs["negatives_KD"].requires_grad_()
    losses = sampled_softmax(**inputs)
    (gradient,) = torch.autograd.grad(losses[0], negatives, retain_graph=True)
    assert gradient[[0, 3]].eq(0).all() and gradient[[1, 2]].ne(0).all()
    only_hits = match_inputs(1, 2, seed=5) | {
        "last_ids_B": torch.tensor([4]),
        "negative_ids_K": torch.tensor([4, 4]),
    }
    assert sampled_softmax(**only_hits).tolist() == [0.0]


def test_no_negatives_give_zero_even_for_infinite_corrections() -> None:
    inputs = match_inputs(3, 0, seed=0) | {"last_log_q_B": torch.full((3,), -torch.inf)}
    assert sampled_softmax(**inputs).tolist() == [0.0, 0.0, 0.0]


def test_log_normal_loss_is_the_density_of_scipy() -> None:
    means, deviations, values = (normal(6, seed=seed).exp() for seed in range(3))
    found = log_normal_loss(means.log(), deviations, values)
    mu = means.log() - deviations**2 / 2
    expected = -stats.lognorm.logpdf(values, deviations, scale=mu.exp())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(stats.lognorm.mean(deviations, scale=mu.exp()), means, rtol=1e-12)


def test_weighted_logistic_loss_is_the_cross_entropy_of_weighted_rows() -> None:
    """Its odds with the least loss are the mean, which the paper's own form only comes near to."""
    logits, values = normal(6), normal(6, seed=1).exp() * torch.tensor([0, 1, 1, 2, 0, 9.0])
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(values.numpy() * np.log(p) + np.log(1 - p))
    np.testing.assert_allclose(weighted_logistic_loss(logits, values).numpy(), expected, rtol=1e-12)
    logit = values.mean().log().requires_grad_()
    weighted_logistic_loss(logit.expand(6), values).sum().backward()
    assert logit.grad is not None and abs(logit.grad.item()) < 1e-12
