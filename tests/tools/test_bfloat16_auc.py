"""Rounded products equal those of PyTorch's own bfloat16, forward and backward."""

import torch

from tools.bfloat16_auc import RoundedProducts


def step() -> list[torch.Tensor]:
    torch.manual_seed(0)
    x_BN, layer = torch.randn(64, 40, requires_grad=True), torch.nn.Linear(40, 30)
    with torch.autocast("cpu", torch.bfloat16):
        y_BD = torch.sigmoid(layer(x_BN))
        product_BB = y_BD @ y_BD.T
    loss = product_BB.float().square().sum()
    return [y_BD, product_BB, *torch.autograd.grad(loss, [x_BN, *layer.parameters()])]


def test_rounded_products_are_bfloat16s() -> None:
    expected = step()
    with RoundedProducts():
        found = step()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        torch.testing.assert_close(
            one, other, rtol=8e-3, atol=1e-3
        )  # sums in another order may round to the next bfloat16
    assert found[0].dtype is torch.bfloat16
