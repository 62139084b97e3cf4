"""Gradients of gathered rows are summed in float32 on a GPU, whatever the type of the rows."""

import numpy as np
import torch

from mail_torchrec.towers.layers.gathering import _with_float32_sums, gather


def test_gradients_of_bfloat16_rows_are_rounded_once() -> None:
    torch.manual_seed(1)
    x_RX = torch.randn(3, 5).bfloat16().requires_grad_()
    rows_N = torch.arange(600) % 3
    gradient_NX = torch.rand(600, 5).bfloat16()
    gathered_NX = _with_float32_sums(x_RX, rows_N)
    assert torch.equal(gathered_NX, x_RX[rows_N])
    (found_RX,) = torch.autograd.grad(gathered_NX, x_RX, gradient_NX)
    sums_RX = np.zeros((3, 5))
    np.add.at(sums_RX, rows_N.numpy(), gradient_NX.double().numpy())
    assert found_RX.dtype == torch.bfloat16
    np.testing.assert_allclose(found_RX.double().numpy(), sums_RX, rtol=2**-8)


def test_on_the_host_and_in_float32_rows_are_gathered_as_by_torch() -> None:
    x_RX = torch.randn(4, 2, requires_grad=True)
    assert gather(x_RX, torch.tensor([1, 1])).grad_fn.name() == "IndexSelectBackward0"  # type: ignore[union-attr]
