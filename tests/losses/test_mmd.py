"""MMD: the formula, its properties as a distance, its gradient, and shares over ranks."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mail_torchrec.losses import mmd as module
from mail_torchrec.losses.mmd import mmd
from tests.support import reference


@pytest.fixture(autouse=True, scope="module", params=["whole", "blocked"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whole kernel matrices, and blocks of a row or a few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "mmd", partial(module.mmd, blocked=request.param == "blocked"))
        patch.setattr(module, "_CPU_BLOCK", 12)
        yield


def codes(num_rows: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(
        num_rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@given(
    num_rows=st.integers(1, 8),
    seed=st.integers(0, 1000),
    sigma=st.floats(0.3, 5.0),
    scale=st.floats(0.01, 3.0),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_formula_and_is_a_distance(
    num_rows: int, seed: int, sigma: float, scale: float
) -> None:
    P, Q = codes(num_rows, seed, scale), codes(num_rows, seed + 1, scale)
    value = mmd(P, Q, sigma)
    assert value.item() == pytest.approx(reference.mmd(P.numpy(), Q.numpy(), sigma), abs=1e-12)
    assert value.item() == pytest.approx(mmd(Q, P, sigma).item(), abs=1e-14)
    assert value.item() >= -1e-12
    assert mmd(P, P, sigma).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_few_rows_give_finite_values_and_gradients(num_rows: int) -> None:
    P, Q = codes(num_rows, 0).requires_grad_(), codes(num_rows, 1).requires_grad_()
    value = mmd(P, Q, 1.0)
    value.backward()
    assert value.isfinite() and P.grad is not None and Q.grad is not None
    assert P.grad.isfinite().all() and Q.grad.isfinite().all()
    assert num_rows or value.item() == 0.0


def test_gradient_equals_finite_differences_of_the_formula() -> None:
    P, Q = codes(4, 0).requires_grad_(), codes(4, 1).requires_grad_()
    gradients = torch.autograd.grad(mmd(P, Q, 1.3), [P, Q])
    arrays, step = [P.detach().numpy(), Q.detach().numpy()], 1e-6
    for side, gradient in enumerate(gradients):
        for row, column in np.ndindex(4, 5):
            values = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[side][row, column] += sign * step
                values.append(reference.mmd(moved[0], moved[1], 1.3))
            assert gradient[row, column].item() == pytest.approx(
                (values[0] - values[1]) / (2 * step), abs=1e-8
            )


@pytest.mark.parametrize("parts", [[3, 4], [0, 7], [1, 0, 6], [2, 2, 2, 1]])
def test_shares_of_ranks_add_up_in_value_and_gradient(parts: list[int]) -> None:
    P, Q = codes(7, 0).requires_grad_(), codes(7, 1).requires_grad_()
    whole = mmd(P, Q, 1.0)
    whole_gradients = torch.autograd.grad(whole, [P, Q])
    own = zip(P.split(parts), Q.split(parts), strict=True)
    share = torch.stack(
        [mmd(own_P, own_Q, 1.0, all_P_MD=P.detach(), all_Q_MD=Q.detach()) for own_P, own_Q in own]
    ).sum()
    torch.testing.assert_close(share, whole)
    torch.testing.assert_close(torch.autograd.grad(share, [P, Q]), whole_gradients)


def test_equal_codes_have_no_gradient_in_float32() -> None:
    P = codes(50, 0, scale=100.0).float().requires_grad_()
    value = mmd(P, P.detach().clone(), 1.0)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5) and P.grad is not None
    assert P.grad.abs().max() < 1e-4


def test_rounding_never_makes_a_kernel_exceed_one() -> None:
    P, Q = codes(20, 0, scale=1000.0).float(), codes(20, 1, scale=1000.0).float()
    assert (
        mmd(P, Q, 0.05) <= 2 / 20 + 1e-6
    )  # no two codes are near each other: only k(x, x) = 1 is left


def test_codes_far_from_zero_keep_their_distances_in_float32() -> None:
    P, Q = ((codes(20, seed, scale=0.5) + 1000).float() for seed in (0, 1))
    assert mmd(P, Q, 1.0).item() == pytest.approx(mmd(P.double(), Q.double(), 1.0).item(), abs=1e-5)


def test_autocast_rounds_the_codes_and_nothing_else() -> None:
    P, Q, weights_N = codes(20, 0).float(), codes(20, 1).float(), torch.arange(20.0)
    values, gradients = [], []
    for dtype in (None, torch.bfloat16):
        own = P.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            values.append(module.mmd(own, Q, 1.0, weights_N=weights_N))
        gradients += torch.autograd.grad(values[-1], own)
    assert values[1].dtype == torch.float32
    assert values[1].item() == pytest.approx(values[0].item(), rel=2**-8)
    assert (gradients[1] - gradients[0]).norm() < 2**-7 * gradients[0].norm()
    assert torch.get_float32_matmul_precision() == "highest"
