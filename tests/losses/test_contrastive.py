"""Contrastive alignment: the formula, weights as repetitions, its gradient, shares over ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mail_torchrec.losses.contrastive import contrastive_loss

Array = NDArray[np.float64]


def codes(num_rows: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_rows, 5, generator=random, dtype=torch.float64)


def reference(Q: Array, P: Array, temperature: float, weights: Array) -> list[float]:
    """Row by row: the cosine of the own pair against the cosines of all pairs of the anchor."""
    losses = []
    for i in range(len(Q)):
        cosines = [float(Q[i] @ p / np.sqrt((Q[i] @ Q[i]) * (p @ p))) for p in P]
        terms = [w * np.exp(c / temperature) for w, c in zip(weights, cosines, strict=True)]
        losses.append(float(-np.log(np.exp(cosines[i] / temperature) / sum(terms))))
    return losses


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_formula(temperature: float, weighted: bool) -> None:
    Q, P = codes(7, 0), codes(7, 1)
    weights = torch.linspace(0.5, 3, 7, dtype=torch.float64) if weighted else None
    expected_weights = np.ones(7) if weights is None else weights.numpy()
    expected = reference(Q.numpy(), P.numpy(), temperature, expected_weights)
    found = contrastive_loss(Q, P, temperature, weights)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_weight_is_a_number_of_rows() -> None:
    Q, P, number = codes(4, 0), codes(4, 1), torch.tensor([1, 3, 2, 1])
    repeated = contrastive_loss(
        Q.repeat_interleave(number, dim=0), P.repeat_interleave(number, dim=0), 0.5
    )
    once = contrastive_loss(Q, P, 0.5, number.double())
    torch.testing.assert_close(once.repeat_interleave(number), repeated)


def test_rows_of_weight_0_are_no_negatives() -> None:
    Q, P, weights = codes(6, 0), codes(6, 1), torch.tensor([1.0, 1, 1, 1, 0, 0])
    found = contrastive_loss(Q, P, 0.3, weights)
    torch.testing.assert_close(found[:4], contrastive_loss(Q[:4], P[:4], 0.3))
    assert contrastive_loss(Q, P, 0.3, torch.zeros(6)).isfinite().all()


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_few_rows_give_finite_values_and_gradients(num_rows: int) -> None:
    Q, P = codes(num_rows, 0).requires_grad_(), codes(num_rows, 1).requires_grad_()
    losses = contrastive_loss(Q, P, 0.2, torch.ones(num_rows))
    losses.sum().backward()
    assert losses.shape == (num_rows,) and losses.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (Q, P))
    assert num_rows != 1 or losses.item() == pytest.approx(0, abs=1e-12)


def test_gradient_equals_finite_differences_of_the_formula() -> None:
    Q, P = codes(4, 0).requires_grad_(), codes(4, 1).requires_grad_()
    gradients = torch.autograd.grad(contrastive_loss(Q, P, 0.7).sum(), [Q, P])
    arrays, step = [Q.detach().numpy(), P.detach().numpy()], 1e-6
    for side, gradient in enumerate(gradients):
        for place in np.ndindex(4, 5):
            ends = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[side][place] += sign * step
                ends.append(sum(reference(moved[0], moved[1], 0.7, np.ones(4))))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert gradient[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("parts", [[3, 4], [0, 7], [1, 0, 6]])
def test_ranks_against_the_candidates_of_all_are_one_rank(parts: list[int]) -> None:
    Q, P, weights = codes(7, 0), codes(7, 1), torch.linspace(0.5, 2, 7, dtype=torch.float64)
    whole = contrastive_loss(Q, P, 0.4, weights)
    first, shares = 0, []
    for own_Q in Q.split(parts):
        shares.append(contrastive_loss(own_Q, P, 0.4, weights, first))
        first += len(own_Q)
    torch.testing.assert_close(torch.cat(shares), whole)


def test_codes_are_compared_in_float32_under_autocast() -> None:
    Q, P = codes(5, 0).float(), codes(5, 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found: Any = contrastive_loss(Q, P, 0.1)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, contrastive_loss(Q, P, 0.1))
